"""`zoo study`."""

import shlex
from pathlib import Path
from typing import Any

import click

from zoo.cli.options import Folder, Names
from zoo.cli.study_options import folder_of, read_chosen, run_chosen, run_options, study_options
from zoo.report.terminal import say

__all__ = ["study"]


@click.group()
def study() -> None:
    """Plan, run, watch, report and export a study: variants of one recipe, over seeds, learning rates and tasks.

    \b
      zoo study plan four-mixers      what it would take; everything that is wrong with it, at once
      zoo study run four-mixers       what zoo ablate does
      zoo study status four-mixers    how far it is, at any moment
      zoo study report four-mixers    its page, tables and plots, at any moment
      zoo study export four-mixers    what a report takes, without the weights
    """


@study.command()
@study_options
@click.option(
    "--tokens-per-second",
    type=click.FloatRange(0, min_open=True),
    help="Of training, to estimate the time where no finished run tells.",
)
def plan(
    study_or_recipe: str,
    overrides: Names,
    mixers: Names | None,
    seeds: int | None,
    learning_rates: tuple[float, ...] | None,
    folder: Path | None,
    tokens_per_second: float | None,
) -> None:
    """Print what a study takes: parameters, state, FLOPs, tokens, steps, runs, memory and time of each variant.

    Everything about it is checked, and every fault is told; nothing is trained or written.

    \b
    Examples:
      zoo study plan four-mixers
      zoo study plan tiny --seeds 3 --tokens-per-second 20000
    """
    from zoo.report.tables import GuardedConsole
    from zoo.study.plan import plan_study, print_plan

    chosen = read_chosen(study_or_recipe, overrides, mixers, seeds, learning_rates)
    place = Path("runs", chosen.name) if folder is None else folder
    print_plan(chosen, plan_study(chosen, place, tokens_per_second), GuardedConsole())


@study.command()
@study_options
@run_options
def run(
    study_or_recipe: str,
    overrides: Names,
    mixers: Names | None,
    seeds: int | None,
    learning_rates: tuple[float, ...] | None,
    folder: Path | None,
    **options: Any,
) -> None:
    """Train every run of a study that is not finished yet, and write its page.

    Processes share the runs, also those that are started on other machines with the same folder in sight. The same
    command goes on after Ctrl-C, SIGTERM, a kill or --seconds, and nothing that was finished is trained again.

    \b
    Examples:
      zoo study run four-mixers
      zoo study run my-study.yaml --processes 4 --seconds 3600
    """
    chosen = read_chosen(study_or_recipe, overrides, mixers, seeds, learning_rates)
    run_chosen(chosen, Path("runs", chosen.name) if folder is None else folder, **options)


@study.command()
@click.argument("study_or_folder")
def status(study_or_folder: str) -> None:
    """Print how far a study is, at any moment: runs that are done, in training, waiting, diverged or stopped.

    STUDY_OR_FOLDER is the folder of a study, or the name of one whose folder is under runs/.
    """
    from zoo.report.tables import GuardedConsole
    from zoo.study.report import read_study, stored_parts
    from zoo.study.status import look
    from zoo.study.status_table import print_status

    folder = folder_of(study_or_folder)
    chosen = read_study(folder)
    print_status(chosen.name, look(stored_parts(chosen, folder), folder), GuardedConsole())


@study.command()
@click.argument("studies_or_folders", nargs=-1, required=True)
@click.option("--output", type=Folder(), help="Where the report goes.  [default: the first folder]")
def report(studies_or_folders: Names, output: Path | None) -> None:
    """Write the page, tables and plots of a study anew from what is there, at any moment.

    Of several folders the runs are put together: parts of one study, trained on several machines. Of each run
    recipe.yaml, result.json, metrics.jsonl and machine.yaml are enough; weights and text are not read.

    \b
    Examples:
      zoo study report four-mixers
      zoo study report machine-a/four-mixers machine-b/four-mixers --output runs/both
    """
    from zoo.study.report import report_study
    from zoo.study.run import check_libraries
    from zoo.study.table import print_summary

    check_libraries()
    folders = [folder_of(each) for each in studies_or_folders]
    place = folders[0] if output is None else output
    found = report_study(folders, place)
    for summary in found:
        if summary.variants:
            print_summary(summary, place / summary.folder / "index.html")
        else:
            say(f"{place}: no run of {summary.label or summary.task} is finished yet")


@study.command()
@click.argument("studies_or_folders", nargs=-1, required=True)
@click.option("--output", type=Folder(), required=True, help="Where it goes, beside what is there of the same study.")
def export(studies_or_folders: Names, output: Path) -> None:
    """Copy what a report takes of the runs that have ended: curves and measures, no weights and no text.

    What comes out is small, zoo study report makes the pages of it anywhere, and as the folder of zoo study run it lets
    the study go on where it stopped, on any machine.

    \b
    Examples:
      zoo study export four-mixers --output kept/four-mixers
      zoo study export first-machine/four-mixers second-machine/four-mixers --output kept/four-mixers
    """
    from zoo.report.numbers import size
    from zoo.study.export import export_study

    found = export_study([folder_of(each) for each in studies_or_folders], output)
    say(f"{output}: {found.runs} of {found.planned} runs, {size(found.byte_count)}")
    say(f"zoo study report {shlex.quote(str(output))}")
