"""How long a step of a variant takes, measured once, so that a budget of seconds becomes a number of steps.

The number then stands: every seed and rate has the same schedule, and a run that was stopped goes on as it would have.
Following the clock instead would give each run its own length, and a resumed one another than an undisturbed one.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from zoo.compiling.report import compiling_seconds
from zoo.config import Config, load_yaml
from zoo.data import Corpus
from zoo.report.files import locked, replace_file
from zoo.study.paused import Paused
from zoo.study.variants import Variant
from zoo.training import SilentProgress, train
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


def find_pace(variant: Variant, folder: Path, corpus: Corpus | None, device: str | None, workshop: Workshop) -> Pace:
    """Return a variant's pace, measured now where it was not before.

    Args:
        variant: on a budget of seconds.
        folder: of its study.
        corpus: what it trains on; None for what training makes by itself.
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


def _measure(variant: Variant, corpus: Corpus | None, device: str | None, workshop: Workshop) -> Pace:
    """Train some steps in a folder that is thrown away."""
    recipe = variant.runs[0].recipe
    # Every step has a line of metrics, which waits for it; nothing is evaluated or saved between two of them.
    steps = _MOST + 2
    training = recipe.training.replace(
        warmup_steps=0, steps=steps, log_every=1, evaluate_every=steps, checkpoint_every=steps, tensorboard=False
    )
    timer = _Timer(_SHARE * (variant.seconds or 0))
    with TemporaryDirectory() as folder, suppress(Paused):
        train(
            recipe.replace(training=training), Path(folder) / "pace", corpus=corpus, device=device, progress=timer,
            workshop=workshop,
        )  # fmt: skip
    compiled = compiling_seconds() if training.compile else 0.0
    return Pace(seconds_per_step=median(timer.times), timed_steps=len(timer.times), compile_seconds=compiled)


class _Timer(SilentProgress):
    """Takes the time of steps after the first, which compiles and warms up, and ends training after enough of them.

    Args:
        seconds: that the timed steps take at most, once there are a few.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._before = seconds, 0.0
        self.times: list[float] = []

    def metrics(self, record: Mapping[str, Any]) -> None:
        """See `ProgressReporter`."""
        if record["kind"] == "train":
            if record["step"] > 1:
                self.times.append(record["seconds"] - self._before)
            self._before = record["seconds"]

    def advance(self, step: int) -> None:
        """See `ProgressReporter`.

        Raises:
            Paused: enough steps are timed.
        """
        if len(self.times) >= _FEWEST and (len(self.times) >= _MOST or sum(self.times) >= self._seconds):
            raise Paused
