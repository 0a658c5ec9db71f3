"""What a study keeps of runs that diverged: they have ended, and are neither tried again nor counted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zoo.config import load_yaml
from zoo.errors import DivergenceError
from zoo.report.files import replace_file
from zoo.study.results import Divergence
from zoo.study.variants import Run, Variant

__all__ = ["counted", "divergences", "keep_divergence", "read_divergence"]

_FILE = "diverged.yaml"


def keep_divergence(variant: Variant, run: Run, folder: Path, error: DivergenceError) -> None:
    """Write into a run's folder that it diverged.

    Raises:
        TrainingError: the file cannot be written.
    """
    found = Divergence(variant=variant.name, learning_rate=run.learning_rate, seed=run.seed, message=str(error))
    replace_file(folder / _FILE, found.to_yaml().encode())


def read_divergence(folder: Path) -> Divergence | None:
    """Return how a run diverged, or None if it did not. Without that file it is trained again."""
    path = folder / _FILE
    return Divergence.from_mapping(load_yaml(path), str(path)) if path.exists() else None


def divergences(variant: Variant, folder: Path) -> tuple[Divergence, ...]:
    """Return those of a variant's runs, in the folder of its study."""
    found = (read_divergence(folder / run.name) for run in variant.runs)
    return tuple(each for each in found if each is not None)


def counted(variant: Variant, lost: Sequence[Divergence]) -> Variant | None:
    """Return a variant with its runs at rates that every seed came through, or None where there is no such rate."""
    rates = {each.learning_rate for each in lost}
    runs = tuple(run for run in variant.runs if run.learning_rate not in rates)
    return replace(variant, runs=runs) if runs else None
