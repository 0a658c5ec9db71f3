"""`zoo cache`."""

from pathlib import Path

import click

from zoo.report.terminal import say

__all__ = ["cache"]

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def cache() -> None:
    """Take compiled code from one machine to others of its kind, which then start without compiling."""


@cache.command()
@click.argument("file", type=_FILE)
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--device", help="For example cpu or cuda:1.  [default: a GPU if there is one]")
@click.option(
    "--decode", "rows", default=0, type=click.IntRange(0), metavar="ROWS",
    help="Also compile reading prompts and decoding, so many rows side by side.",
)  # fmt: skip
def save(file: Path, recipe: str, overrides: tuple[str, ...], device: str | None, rows: int) -> None:
    """Compile RECIPE as `zoo train` does and write what came of it to FILE, whole or not at all.

    One evaluation and one training step are made on the recipe's data; nothing is trained. Sizes, precision and
    everything else that is compiled for have to be those of the runs that the file is for.

    \b
    Examples:
      zoo cache save tiny.cache tiny mixer=gated-power
      zoo cache save gpt2.cache gpt2-124m training.compile=layers --decode 16
    """
    from zoo.caching import run_recipe, save_cache
    from zoo.recipe import load_recipe
    from zoo.report.files import check_outputs, is_standard_output
    from zoo.training.distributed import choose_device

    check_outputs(file=file)
    if is_standard_output(file):
        raise click.UsageError("FILE: expected a file, was standard output")
    loaded, place = load_recipe(recipe, overrides), choose_device(device)
    entries = save_cache(file, lambda: run_recipe(loaded, place, decode_rows=rows), place)
    say(f"{file}: {entries:,} graphs, libraries and kernels, {file.stat().st_size / 2**20:.1f} MiB")


@cache.command()
@click.argument("file", type=_FILE)
@click.option("--trusted", is_flag=True, help="You would run any program of whoever wrote FILE.")
def load(file: Path, trusted: bool) -> None:
    """Put what `zoo cache save` wrote to FILE where the compilers look.

    These are the folders that TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR name, or the compilers' own. A file of other
    versions of zoo, torch, Triton or Python, or of another kind of GPU or processor, is refused.

    FILE holds programs, and whatever is compiled next runs them: they can do what you can. The hash in it tells of
    accidents, not of people. Hence --trusted, for files of your own and of people whose programs you would run.

    \b
    Example:
      zoo cache load tiny.cache --trusted
    """
    from zoo.caching import load_cache

    loaded = load_cache(file, trusted=trusted)
    say(f"{file}: {loaded.new:,} graphs, libraries and kernels are new, {loaded.known:,} were there already")
    if loaded.remark is not None:
        say(f"{file}: {loaded.remark}")
