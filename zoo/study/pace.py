"""How long a step of a variant takes, measured once, so that a budget of seconds becomes a number of steps.

The number then stands: every seed and rate has the same schedule, and a run that was stopped goes on as it would have.
Following the clock instead would give each run its own length, and a resumed one another than an undisturbed one.
"""

import time
from pathlib import Path
from statistics import median

import torch

from zoo.compiling.report import compiling_seconds, naming_compile_errors
from zoo.config import Config, load_yaml
from zoo.data import Corpus
from zoo.report.files import locked, replace_file
from zoo.study.variants import Variant
from zoo.training.distributed import join_processes
from zoo.training.engine import Engine
from zoo.training.memory import advice, naming_memory_errors
from zoo.training.optimizer import deterministic_on_cpu
from zoo.training.workshop import Workshop

__all__ = ["Pace", "find_pace", "read_pace"]

_FILE = "pace.yaml"
_FEWEST, _MOST = 3, 30
"""Steps that are timed."""
_SHARE = 0.05
"""Of the budget, which the timed steps take at most."""


class Pace(Config):
    """What was measured of a variant before its first run, where it was trained and beside whatever else ran there."""

    seconds_per_step: float
    """The median over the timed steps, which compile nothing and do not evaluate."""
    timed_steps: int
    compile_seconds: float
    """Of the compiler, for what the runs then need not compile again."""


def read_pace(folder: Path) -> Pace | None:
    """Return what was measured of the variant in `folder`, or None if nothing was yet."""
    path = folder / _FILE
    return Pace.from_mapping(load_yaml(path), str(path)) if path.exists() else None


def find_pace(variant: Variant, folder: Path, corpus: Corpus, device: str | None, workshop: Workshop) -> Pace:
    """Return a variant's pace, measured now where it was not before.

    Args:
        variant: on a budget of seconds.
        folder: of its study.
        corpus: what it trains on.
        device: by default a GPU if there is one, else the CPU.
        workshop: keeps the model that is compiled here for the runs.

    Raises:
        InUseError: another process measures it.
        TrainingError: memory does not suffice, the model does not compile, or the file cannot be written.
    """
    place = folder / variant.folder
    with locked(place, "measures the pace"):
        pace = read_pace(place)
        if pace is None:
            pace = _measure(variant, corpus, device, workshop)
            replace_file(place / _FILE, pace.to_yaml().encode())
        return pace


def _measure(variant: Variant, corpus: Corpus, device: str | None, workshop: Workshop) -> Pace:
    recipe = variant.runs[0].recipe
    with join_processes(device) as processes, torch.random.fork_rng(devices=processes.gpus):
        torch.manual_seed(recipe.training.seed)
        with naming_memory_errors(advice(recipe.training)), naming_compile_errors():
            objective = workshop.objective(recipe, processes)
            before = compiling_seconds()
            with deterministic_on_cpu(processes.device):
                engine = Engine(objective, recipe.training, corpus, processes)
                _timed(engine, 1)  # which compiles
                compiled = compiling_seconds() - before
                times = _times(engine, _SHARE * (variant.seconds or 0))
    return Pace(seconds_per_step=median(times), timed_steps=len(times), compile_seconds=max(0.0, compiled))


def _times(engine: Engine, seconds: float) -> list[float]:
    _timed(engine, 2)  # the first that is only a step
    times: list[float] = []
    while len(times) < _FEWEST or (len(times) < _MOST and sum(times) < seconds):
        times.append(_timed(engine, 3 + len(times)))
    return times


def _timed(engine: Engine, step: int) -> float:
    started = time.perf_counter()
    engine.step(step).tolist()  # which waits for the device
    return time.perf_counter() - started
