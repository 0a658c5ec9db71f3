"""`zoo train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoo.cli.options import Folder
from zoo.report.terminal import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zoo.training import TrainingResult

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
      zoo train tiny task=mqar task.pairs=8 --folder runs/recall
    """
    from zoo.recipe import load_recipe
    from zoo.training import make_progress
    from zoo.training import train as train_recipe
    from zoo.training.distributed import own_rank

    loaded = load_recipe(recipe, overrides)
    folder = Path("runs", loaded.name) if folder is None else folder
    result = train_recipe(loaded, folder, device=device, progress=make_progress(loaded.name))
    if own_rank() == 0:  # torchrun starts this once for every device
        if loaded.task is not None:
            for line in _accuracy_lines(result):
                say(f"{loaded.name}: {line}")
            say(f"{folder}: metrics, checkpoints and result.json, with the accuracy by distance")
            return
        unit = "bits per token" if loaded.data.tokenizer == "none" else "bits per byte"
        say(f"{loaded.name}: {result.final_bits_per_byte:.3f} {unit} on validation text ({result.tokens:,} tokens)")
        say(f"{folder}: metrics and checkpoints; see zoo generate {folder} --prompt ...")


def _accuracy_lines(result: TrainingResult) -> Iterator[str]:
    """Say how much of each case of a task is right, of all distances together."""
    for entry in result.accuracy:
        if entry["distance"] is None:
            right = f"{entry['accuracy']:.1%} of {entry['answers']:,} answers right"
            pairs = "" if entry["pairs"] is None else f" with {entry['pairs']} pairs"
            depth = "" if entry["depth"] is None else f" at depth {entry['depth']:g}"
            yield f"{right} at length {entry['length']:,}{pairs}{depth}"
