"""What `zoo ablate` and `zoo study` have in common: which study, and how it is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.options import Folder, names, rates
from zoo.report.terminal import say

if TYPE_CHECKING:
    from zoo.recipe.study import Study

__all__ = ["folder_of", "read_chosen", "run_options", "run_chosen", "study_options"]

_Decorator = Callable[[Any], Any]


def study_options(command: Any) -> Any:
    """Add the argument and the options that say which study is meant."""
    for option in reversed(_STUDY):
        command = option(command)
    return command


def run_options(command: Any) -> Any:
    """Add the options that say how a study is run."""
    for option in reversed(_RUN):
        command = option(command)
    return command


_STUDY: tuple[_Decorator, ...] = (
    click.argument("study_or_recipe"),
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
    click.option(
        "--mixers",
        callback=names,
        help="What to compare in a recipe, with commas, options as in power:p=3.  "
        "[default: softmax,linear,power,gated-power]",
    ),
    click.option(
        "--seeds",
        type=click.IntRange(1, 1000),
        help="Runs of each mixer, from as many seeds, of which the mean counts.  [default: 1]",
    ),
    click.option(
        "--learning-rates", callback=rates, help="Rates to try with each mixer, with commas; its best counts."
    ),
    click.option("--folder", type=Folder(), help="Where the study goes.  [default: runs/NAME]"),
)

_RUN: tuple[_Decorator, ...] = (
    click.option("--device", help="For example cpu or cuda:1.  [default: a GPU if there is one]"),
    click.option(
        "--processes",
        type=click.IntRange(1, 1024),
        help="That train at the same time, with one thread each.  [default: one for each GPU, else for each core]",
    ),
    click.option(
        "--seconds",
        type=click.FloatRange(0, min_open=True),
        help="Stop after so many, with every step saved; the same command goes on.",
    ),
    click.option(
        "--only",
        callback=names,
        help="Train the runs alone whose folders are like these, with commas: 'seconds-120/*,*-seed-0'.",
    ),
    click.option(
        "--early-stop", is_flag=True, help="Give up learning rates that are in the worse half early, which may err."
    ),
)


def read_chosen(study_or_recipe: str, overrides: Any, mixers: Any, seeds: Any, learning_rates: Any) -> Study:
    """Return the study that the options mean; the folder of one that was run, too, stands for it."""
    from zoo.recipe.study import load_study
    from zoo.study.report import read_study

    if Path(study_or_recipe, "study.yaml").is_file():
        study = read_study(Path(study_or_recipe)).overridden(overrides)
        changes = {"seeds": seeds, "learning_rates": learning_rates}
        return study.replace(**{key: value for key, value in changes.items() if value is not None})
    return load_study(study_or_recipe, mixers, overrides, seeds=seeds, learning_rates=learning_rates)


def folder_of(study_or_folder: str) -> Path:
    """Return the folder of a study that was run: that path, or, of a study's name, the one under `runs`."""
    path = Path(study_or_folder)
    return path if path.is_dir() or not Path("runs", study_or_folder).is_dir() else Path("runs", study_or_folder)


def run_chosen(
    study: Study, folder: Path, *, device: str | None, processes: int | None, only: Any, **options: Any
) -> None:
    """Run a study and print its tables; where the time is up, say how to go on."""
    import signal

    from zoo.errors import Interruption
    from zoo.study.processes import default_processes
    from zoo.study.run import run_study
    from zoo.study.table import print_summary

    try:
        processes = processes or default_processes(device)
        found = run_study(study, folder, device=device, processes=processes, only=only or (), **options)
    except Interruption as error:
        if options.get("seconds") is None or error.signal != signal.SIGUSR1:
            raise
        say(f"{folder}: the {options['seconds']:g} seconds are over, and every step is saved; the same command goes on")
        return
    for summary in found:
        if summary.variants:
            print_summary(summary, folder / summary.folder / "index.html")
