"""What of a run may change from one start to the next: its length and its bookkeeping, nothing that it came to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.config import Config, flatten
from zoo.errors import CheckpointError
from zoo.recipe.training import TrainingConfig
from zoo.training.optimizer import learning_rate_at

__all__ = ["check_same_run"]

_FREE = {
    "data.cache",
    "description",
    "training.checkpoint_every",
    "training.checkpointing",
    "training.compile",
    "training.log_every",
    "training.tensorboard",
}
"""What changes nothing that is trained, but for the order of sums. What is measured in the end is free too."""


def check_same_run(recipe: Config, stored: Mapping[str, Any], owner: Path, made: int) -> None:
    """Check that a run with the recipe `stored`, as mappings, may go on as one of `recipe`.

    Args:
        recipe: what is asked for; its `training` is a `TrainingConfig`.
        stored: what the run was started with.
        owner: the folder that `stored` is from.
        made: steps that the run has made; another length must give them the rates that they had.

    Raises:
        CheckpointError: it may not; the line names the first key that differs.
        ConfigError: it is none that this version understands.
    """
    # Through the config, so that keys that a newer version has added stand at their defaults.
    former = type(recipe).from_mapping(stored, str(owner))
    was, now = _leaves(former), _leaves(recipe)
    # Names first: with the mixer's name, keys that only one of the two mixers has differ as well.
    for key in sorted([*was, *now], key=lambda key: not key.endswith("name")):
        if was.get(key) != now.get(key):
            reason = ""
            if key == "training.steps":
                reason = _against(former.training, recipe.training, made)  # type: ignore[attr-defined]
                if not reason:
                    continue
            change = f"{key}={was.get(key)}, not {now.get(key)}{reason}"
            raise CheckpointError(f"{owner}: holds a run with {change}; choose another folder or delete this one")


def _against(was: TrainingConfig, now: TrainingConfig, made: int) -> str:
    """Say what is against another number of steps, if anything is."""
    if now.steps < made:
        return f", and {made} of them are made"
    if any(learning_rate_at(was, step) != learning_rate_at(now, step) for step in range(made, 0, -1)):
        return f", with other learning rates for the {made} that are made (training.schedule={was.schedule})"
    return ""


def _is_free(key: str) -> bool:
    return key in _FREE or key.startswith(("evaluation.", "training.parallel."))


def _leaves(recipe: Config) -> dict[str, Any]:
    values = {key: value for key, value in flatten(recipe.model_dump(mode="json")) if not _is_free(key)}
    if values["training.spike"] == "stop":  # which steps are made is the same
        values["training.spike"] = "warn"
    return values
