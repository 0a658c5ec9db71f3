"""How far a study is: what every run is doing, and how long the rest will take."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from zoo.reading import open_regular
from zoo.study.budget import flops_per_step
from zoo.study.collect import is_finished
from zoo.study.divergence import read_divergence
from zoo.study.halving import read_stop
from zoo.study.pace import read_pace
from zoo.study.variants import Part, Run, Variant

__all__ = ["RunProgress", "State", "StudyStatus", "look"]

_TAIL = 2**14
"""Bytes at the end of a run's metrics in which the last line is whole."""

State = Literal["done", "running", "waiting", "diverged", "stopped"]


@dataclass(frozen=True)
class RunProgress:
    """One run at some moment."""

    name: str
    variant: str
    """Its folder, which tells tasks apart too."""
    state: State
    step: int
    steps: int
    seconds: float
    """Of training so far: neither compilation nor evaluation is among them."""

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "diverged", "stopped")


@dataclass(frozen=True)
class StudyStatus:
    """All runs of a study at some moment."""

    runs: tuple[RunProgress, ...]
    step_flops: Mapping[str, float]
    """By variant, of one step."""

    def count(self, *states: State) -> int:
        """Return how many runs are in one of these states."""
        return sum(run.state in states for run in self.runs)

    @property
    def ended(self) -> int:
        return sum(run.is_over for run in self.runs)

    @property
    def seconds_left(self) -> float | None:
        """Training time that is left, shared out evenly among the runs that are in training; None: unknown.

        A step takes what it took in the same variant so far, or, before its first, what its operations take in others.
        """
        paces = self._seconds_per_step()
        left = [run for run in self.runs if not run.is_over]
        if not all(run.variant in paces for run in left):
            return None
        return sum((run.steps - run.step) * paces[run.variant] for run in left) / max(1, self.count("running"))

    def _seconds_per_step(self) -> dict[str, float]:
        known: dict[str, float] = {}
        for variant in self.step_flops:
            own = [run for run in self.runs if run.variant == variant and run.step and run.seconds]
            if own:
                known[variant] = sum(run.seconds for run in own) / sum(run.step for run in own)
        if known:
            per_flop = fmean(seconds / self.step_flops[variant] for variant, seconds in known.items())
            for variant, flops in self.step_flops.items():
                known.setdefault(variant, per_flop * flops)
        return known


def look(parts: Sequence[Part], folder: Path) -> StudyStatus:
    """Return how far the study in `folder` is; nothing is written, and nothing waits.

    Raises:
        CheckpointError: a folder holds the run of another recipe.
    """
    variants = [_paced(variant, folder) for part in parts for variant in part.variants]
    return StudyStatus(
        runs=tuple(_progress(variant, run, folder) for variant in variants for run in variant.runs),
        step_flops={variant.folder: float(flops_per_step(variant.recipe)) for variant in variants},
    )


def _paced(variant: Variant, folder: Path) -> Variant:
    pace = None if variant.seconds is None else read_pace(folder / variant.folder)
    return variant if pace is None else variant.at_pace(pace.seconds_per_step)


def _progress(variant: Variant, run: Run, folder: Path) -> RunProgress:
    step, seconds = _last_position(folder / run.name / "metrics.jsonl")
    steps = run.recipe.training.steps
    return RunProgress(run.name, variant.folder, _state(run, folder), min(step, steps), steps, seconds)


def _last_position(path: Path) -> tuple[int, float]:
    """Return the step and the seconds of the last whole line of metrics, of which the end alone is read."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().split(b"\n")
    except OSError:  # not begun
        return 0, 0.0
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):  # a first or last line that is not whole
            record = json.loads(line)
            return int(record["step"]), float(record["seconds"])
    return 0, 0.0


def _state(run: Run, folder: Path) -> State:
    place = folder / run.name
    if is_finished(run, folder):
        return "done"
    if read_divergence(place) is not None:
        return "diverged"
    if read_stop(place) is not None:
        return "stopped"
    return "running" if _is_locked(place) else "waiting"


def _is_locked(folder: Path) -> bool:
    """Whether a process trains in a folder. For a moment nobody else can begin to, as if this one did."""
    if not folder.is_dir():
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
