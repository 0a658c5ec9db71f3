"""`zoo ablate`."""

from pathlib import Path
from typing import Any

import click

from zoo.cli.options import Names
from zoo.cli.study_options import read_chosen, run_chosen, run_options, study_options

__all__ = ["ablate"]


@click.command()
@study_options
@run_options
def ablate(
    study_or_recipe: str,
    overrides: Names,
    mixers: Names | None,
    seeds: int | None,
    learning_rates: tuple[float, ...] | None,
    folder: Path | None,
    **options: Any,
) -> None:
    """Train one recipe with several mixers, on the same data with the same seeds and budget, and compare them.

    STUDY_OR_RECIPE is a name from `zoo list` or the path of a .yaml file. Parameters are matched within 1%. The folder
    gets the runs of each variant, summary.json, plots and one page, index.html. The same command again skips what is
    finished and goes on with the rest, also after Ctrl-C or SIGTERM. `zoo study` plans, watches and reports the same.

    \b
    Examples:
      zoo ablate four-mixers
      zoo ablate tiny --mixers softmax,gated-power training.steps=500
      zoo ablate tiny --seeds 3 --learning-rates 1e-3,2e-3,4e-3
    """
    study = read_chosen(study_or_recipe, overrides, mixers, seeds, learning_rates)
    run_chosen(study, Path("runs", study.name) if folder is None else folder, **options)
