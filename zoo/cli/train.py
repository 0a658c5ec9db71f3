"""`zoo train`."""

from pathlib import Path

import click

from zoo.cli.options import Folder
from zoo.report.terminal import say

__all__ = ["train"]


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--folder", type=Folder(), help="Where the run goes.  [default: runs/NAME]")
@click.option("--device", help="For example cpu or cuda:1.  [default: a GPU if there is one]")
def train(recipe: str, overrides: tuple[str, ...], folder: Path | None, device: str | None) -> None:
    """Train RECIPE, or go on with its run where the last checkpoint left it.

    RECIPE is a name from `zoo list` or the path of a .yaml file; `zoo show RECIPE --yaml` prints every key that can be
    overridden. The folder gets the whole recipe, metrics as JSON lines and checkpoints. At Ctrl-C or SIGTERM the step
    is finished and a checkpoint saved, a second one ends at once; the same command continues.

    \b
    Examples:
      zoo train tiny
      zoo train tiny mixer=power mixer.p=2 training.steps=1000 --folder runs/power
      zoo train gpt2-124m data.source='books/*.txt'
    """
    from zoo.recipe import load_recipe
    from zoo.training import make_progress
    from zoo.training import train as train_recipe
    from zoo.training.distributed import own_rank

    loaded = load_recipe(recipe, overrides)
    folder = Path("runs", loaded.name) if folder is None else folder
    result = train_recipe(loaded, folder, device=device, progress=make_progress(loaded.name))
    if own_rank() == 0:  # torchrun starts this once for every device
        unit = "bits per token" if loaded.data.tokenizer == "none" else "bits per byte"
        say(f"{loaded.name}: {result.final_bits_per_byte:.3f} {unit} on validation text ({result.tokens:,} tokens)")
        say(f"{folder}: metrics and checkpoints; see zoo generate {folder} --prompt ...")
