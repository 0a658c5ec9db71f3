"""The folder of a run: what is where, whose it is and how far it came."""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from zoo.builder import build
from zoo.config import Config, load_yaml
from zoo.errors import CheckpointError
from zoo.models import Decoder
from zoo.reading import read_regular
from zoo.recipe import Recipe
from zoo.recipe.training import TrainingConfig
from zoo.report.files import locked, replace_file, writing
from zoo.training.distributed import choose_device
from zoo.training.run.checkpoint import Checkpoint, CheckpointStore
from zoo.training.run.growth import check_same_run
from zoo.training.run.metrics import check_metrics, extent_of, read_metrics
from zoo.training.run.result import TrainingResult, read_result, write_result
from zoo.training.state import restore_model, saved_tensors

__all__ = [
    "RunFolder",
    "RunStatus",
    "load_checkpoint_model",
    "load_result",
    "load_run",
    "run_status",
    "trained",
]

RunStatus = Literal["missing", "unfinished", "finished"]


class RunFolder:
    """A run on disk: `recipe.yaml`, `metrics.jsonl`, `checkpoints/` and, once it is finished, `result.json`.

    With `training.tensorboard` there is `tensorboard/` too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_path = path / "recipe.yaml"
        self.metrics_path = path / "metrics.jsonl"
        self.events_path = path / "tensorboard"
        self.result_path = path / "result.json"
        self.checkpoints = CheckpointStore(path / "checkpoints")

    def status(self, recipe: Config | None = None) -> RunStatus:
        """Return how far the run came, as one of `recipe`, which may ask for more than it was finished with.

        Raises:
            CheckpointError: it is the run of another recipe, or its result is damaged.
            ConfigError: recipe.yaml is damaged or of another version.
        """
        if not self.recipe_path.exists():
            return "missing"
        if recipe is not None:
            self.check(recipe)
        if not self.result_path.exists():
            return "unfinished"
        return "unfinished" if recipe is not None and self._lacks_something(recipe) else "finished"

    def _lacks_something(self, recipe: Config) -> bool:
        """Whether a recipe asks for more steps than the result has, or for other measures."""
        former = type(recipe).from_mapping(load_yaml(self.recipe_path), str(self.recipe_path))
        was, now = ((each.training, each.evaluation) for each in (former, recipe))  # type: ignore[attr-defined]
        return read_result(self.result_path)[0].steps != now[0].steps or was[1] != now[1]

    def claim(self, recipe: Config) -> None:
        """Make the folder this recipe's, or check that it is.

        Raises:
            CheckpointError: it holds the run of another recipe.
            TrainingError: it cannot be written.
        """
        if self.recipe_path.exists():
            self.check(recipe)
            return
        with writing(self.path):
            self.checkpoints.folder.mkdir(parents=True, exist_ok=True)  # so that it is missing from no run
        replace_file(self.recipe_path, recipe.to_yaml().encode())

    def check(self, recipe: Config) -> None:
        """Check that the run is this recipe's, or may go on as one of it.

        Raises:
            CheckpointError: it is not; the line names the first key that differs.
            ConfigError: recipe.yaml is damaged or of another version.
        """
        made = self.checkpoints.newest_step()
        if self.result_path.exists():
            made = max(made, read_result(self.result_path)[0].steps)
        check_same_run(recipe, load_yaml(self.recipe_path), self.path, made)

    def reopen(self, recipe: Config) -> None:
        """Make the run unfinished, and its recipe this one. Only for the one process that trains.

        Raises:
            TrainingError: a file cannot be written.
        """
        with writing(self.path):
            self.result_path.unlink(missing_ok=True)
        content = recipe.to_yaml().encode()
        if read_regular(self.recipe_path) != content:
            replace_file(self.recipe_path, content)

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the newest sound checkpoint, or None where none was ever saved.

        Raises:
            CheckpointError: there is none although there was, or none is sound, or they cannot be read.
        """
        checkpoint = self.checkpoints.newest()
        if checkpoint is None and self.recipe_path.exists() and self._had_checkpoint():
            raise CheckpointError(
                f"{self.checkpoints.folder}: they are gone; put them back, or delete {self.path} to train anew"
            )
        return checkpoint

    def _had_checkpoint(self) -> bool:
        if self.result_path.exists() or not self.checkpoints.folder.is_dir():
            return True
        stored = load_yaml(self.recipe_path).get("training", {})
        every = TrainingConfig.from_mapping(stored, f"{self.recipe_path}: training").checkpoint_every
        last = max((record["step"] for record in read_metrics(self.metrics_path)), default=0)
        return last > every  # at that very step the metrics come first

    def locked(self) -> AbstractContextManager[None]:
        """Keep others from training here at the same time; nothing is read or written for training before.

        Raises:
            TrainingError: another process is training here, or the folder cannot be made.
        """
        return locked(self.path, "is training")

    def result(self) -> TrainingResult:
        """Return what the finished run came to.

        Raises:
            CheckpointError: the result or the metrics are no longer what the run wrote.
        """
        result, metrics = read_result(self.result_path)
        if metrics is not None:
            check_metrics(self.metrics_path, metrics)
        return result

    def finish(self, result: TrainingResult) -> None:
        """Mark the run as finished, with the metrics as they are.

        Raises:
            TrainingError: the file cannot be written.
        """
        write_result(self.result_path, result, extent_of(self.metrics_path))


def run_status(folder: Path, recipe: Recipe | None = None) -> RunStatus:
    """Return whether the run in `folder` is missing, unfinished or finished.

    Args:
        folder: need not exist.
        recipe: whose run it must be, if it is anyone's. A run that is finished with fewer steps, or with another
            `evaluation`, is unfinished as its.

    Raises:
        CheckpointError: it is the run of another recipe; the line names the first key that differs.
    """
    return RunFolder(Path(folder)).status(recipe)


def load_result(folder: Path) -> TrainingResult:
    """Return what the finished run in `folder` came to.

    Raises:
        CheckpointError: it is not finished, or its result or metrics are no longer what was written.
    """
    run = RunFolder(Path(folder))
    if run.status() != "finished":
        raise CheckpointError(f"{folder}: holds no finished run")
    return run.result()


def trained(folder: Path) -> tuple[Recipe, Checkpoint]:
    """Return the recipe of the run in `folder` and its newest checkpoint.

    Raises:
        CheckpointError: there is no run or no checkpoint yet, or it is damaged.
    """
    run = RunFolder(Path(folder))
    if run.status() == "missing":
        raise CheckpointError(f"{folder}: holds no run; expected a folder that zoo train wrote")
    recipe = Recipe.from_mapping(load_yaml(run.recipe_path), str(run.recipe_path))
    checkpoint = run.newest_checkpoint()
    if checkpoint is None:
        raise CheckpointError(f"{folder}: has no checkpoint yet")
    return recipe, checkpoint


def load_run(folder: Path, *, device: torch.device | str | None = None) -> tuple[Recipe, Decoder]:
    """Return the recipe of the run in `folder` and its model with the weights of the newest checkpoint, for inference.

    Raises:
        CheckpointError: there is no run or no checkpoint yet, or it is damaged or of another model.
    """
    recipe, checkpoint = trained(folder)
    model = build(recipe, device=None if device is None else choose_device(device))
    restore_model(model, partial(saved_tensors, checkpoint, "model", model), str(checkpoint.path))
    return recipe, model.eval()


def load_checkpoint_model(folder: Path, *, device: torch.device | str | None = None) -> Decoder:
    """Return the model of the run in `folder`; see `load_run`."""
    return load_run(folder, device=device)[1]
