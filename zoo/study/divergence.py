"""What a study keeps of runs that diverged: they have ended, and are neither tried again nor counted."""

from pathlib import Path

from zoo.config import load_yaml
from zoo.errors import DivergenceError
from zoo.report.files import replace_file
from zoo.study.results import Divergence
from zoo.study.variants import Run, Variant

__all__ = ["keep_divergence", "read_divergence"]

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
