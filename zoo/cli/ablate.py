"""`zoo ablate`."""

from pathlib import Path

import click

from zoo.cli.options import Folder, Names, names, rates

__all__ = ["ablate"]


@click.command()
@click.argument("study_or_recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--mixers",
    callback=names,
    help="What to compare in a recipe, with commas, options as in power:p=3.  "
    "[default: softmax,linear,power,gated-power]",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    help="Runs of each mixer, from as many seeds, of which the mean counts.  [default: 1]",
)
@click.option("--learning-rates", callback=rates, help="Rates to try with each mixer, with commas; its best counts.")
@click.option("--folder", type=Folder(), help="Where the study goes.  [default: runs/NAME]")
@click.option("--device", help="For example cpu or cuda:1.  [default: a GPU if there is one]")
def ablate(
    study_or_recipe: str,
    overrides: Names,
    mixers: Names | None,
    seeds: int | None,
    learning_rates: tuple[float, ...] | None,
    folder: Path | None,
    device: str | None,
) -> None:
    """Train one recipe with several mixers, on the same data with the same seeds and budget, and compare them.

    STUDY_OR_RECIPE is a name from `zoo list` or the path of a .yaml file. Parameters are matched within 1%. The folder
    gets the runs of each variant, summary.json, plots and one page, index.html. The same command again skips what is
    finished and goes on with the rest, also after Ctrl-C or SIGTERM.

    \b
    Examples:
      zoo ablate four-mixers
      zoo ablate tiny --mixers softmax,gated-power training.steps=500
      zoo ablate tiny --seeds 3 --learning-rates 1e-3,2e-3,4e-3
    """
    from zoo.recipe.study import load_study
    from zoo.study.run import run_study
    from zoo.study.table import print_summary

    study = load_study(study_or_recipe, mixers, overrides, seeds=seeds, learning_rates=learning_rates)
    folder = Path("runs", study.name) if folder is None else folder
    summary = run_study(study, folder, device=device)
    print_summary(summary, folder / "index.html")
