"""What a study came to so far, from the folders of its runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zoo.study.divergence import read_divergence
from zoo.study.halving import read_stop
from zoo.study.measure import summarise_variant
from zoo.study.pace import Pace, read_pace
from zoo.study.results import Divergence, EarlyStop
from zoo.study.setting import now
from zoo.study.summary import StudySummary
from zoo.study.variants import Part, Run, Variant
from zoo.training import run_status

__all__ = ["collect", "has_ended", "is_finished"]


def is_finished(run: Run, folder: Path) -> bool:
    """Whether a run of the study in `folder` went to its end.

    Raises:
        CheckpointError: its folder holds the run of another recipe.
    """
    return run_status(folder / run.name, run.recipe) == "finished"


def has_ended(run: Run, folder: Path) -> bool:
    """Whether nothing is left to do of a run: it is finished, diverged, or was stopped early."""
    place = folder / run.name
    return is_finished(run, folder) or read_divergence(place) is not None or read_stop(place) is not None


def collect(setting: StudySummary, part: Part, folders: Sequence[Path]) -> StudySummary:
    """Return what one part of a study came to by now.

    Args:
        setting: of the part.
        part: what was to be trained.
        folders: of the study: one, or several in which parts of it were trained. A run counts once, from the first
            folder that has it.

    Raises:
        CheckpointError: a folder holds the run of another recipe or corpus, or is damaged.
    """
    lost: list[Divergence] = []
    stopped: list[EarlyStop] = []
    waiting: dict[str, int] = {}
    summaries = []
    for variant in part.variants:
        finished = _finished(variant, folders)
        variant = _paced(variant, folders)
        given_up = {run.name: end for run in variant.runs if run.name not in finished and (end := _end(run, folders))}
        for end in given_up.values():
            if isinstance(end, EarlyStop):
                stopped.append(end)
            else:
                lost.append(end)
        if left := len(variant.runs) - len(finished) - len(given_up):
            waiting[variant.name] = left
        if counted := _counted(variant, set(finished), [end.learning_rate for end in given_up.values()]):
            pace = _pace(variant, folders)
            compiled = 0.0 if pace is None else pace.compile_seconds
            summary = summarise_variant(counted, finished, setting)
            summaries.append(summary.replace(pace_compile_seconds=compiled))
    first = _paced(part.variants[0], folders)
    return setting.replace(
        variants=tuple(summaries), divergences=tuple(lost), stopped=tuple(stopped), waiting=waiting, date=now(),
        steps=first.steps,
    )  # fmt: skip


def _paced(variant: Variant, folders: Sequence[Path]) -> Variant:
    """Return a variant with the steps that its first measured pace gives it."""
    pace = _pace(variant, folders)
    return variant if pace is None else variant.at_pace(pace.seconds_per_step)


def _pace(variant: Variant, folders: Sequence[Path]) -> Pace | None:
    paces = (read_pace(folder / variant.folder) for folder in folders) if variant.seconds is not None else ()
    return next((each for each in paces if each is not None), None)


def _finished(variant: Variant, folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folder of each finished run, by name: the first one that has it.

    On a budget of seconds each machine timed the steps of its own runs.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for run in _paced(variant, [folder]).runs:
            if run.name not in found and is_finished(run, folder):
                found[run.name] = folder / run.name
    return found


def _end(run: Run, folders: Sequence[Path]) -> Divergence | None:
    ends = (read_divergence(folder / run.name) or read_stop(folder / run.name) for folder in folders)
    return next((end for end in ends if end is not None), None)


def _counted(variant: Variant, finished: set[str], without: Sequence[float]) -> Variant | None:
    """Return a variant with the runs that count, or None where there is none.

    Those at rates that every seed came through; where there is no such rate yet, those that are finished at rates that
    no seed failed at.
    """
    rates = dict.fromkeys(run.learning_rate for run in variant.runs if run.learning_rate not in without)
    of_rate = {rate: [run for run in variant.runs if run.learning_rate == rate] for rate in rates}
    whole = [runs for runs in of_rate.values() if all(run.name in finished for run in runs)]
    chosen = whole or [[run for run in runs if run.name in finished] for runs in of_rate.values()]
    runs = tuple(run for some in chosen for run in some)
    return replace(variant, runs=runs) if runs else None
