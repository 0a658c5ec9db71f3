"""The `task` section of a recipe: what is trained on in place of text, and whether it fits the rest of the recipe."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from zoo.config import Config
from zoo.recipe.evaluation import EvaluationConfig
from zoo.recipe.model import DecoderConfig
from zoo.tasks import Task, TaskConfig

__all__ = ["TEXT", "NamedTask", "check_task", "task_vocabulary"]

TEXT = "text"
"""The kind that is no task: what `data` says is trained on."""


def _expand_kind(value: Any) -> Any:
    """Let `task: mqar` stand for `task: {kind: mqar}`, and `text` for no task."""
    if value is not None and not isinstance(value, str | Mapping | Config):
        raise ValueError(f"must be a task's kind, such as mqar, or a mapping with its kind and options, got {value!r}")
    if isinstance(value, str):
        value = {"kind": value}
    return None if value == {"kind": TEXT} else value


NamedTask = Annotated[TaskConfig | None, BeforeValidator(_expand_kind)]
"""A task's kind, or a mapping of its `kind` and options; None: text."""


class _Section(Config):
    """A recipe of which only the task is known yet."""

    task: NamedTask = None


def task_vocabulary(task: object, source: str) -> int | None:
    """Return how many token ids a task has, given as in a recipe; None: it is text.

    Raises:
        ConfigError: it is no task.
    """
    found = _Section.from_mapping({"task": task}, source).task
    return None if found is None else found.vocabulary


def check_task(task: Task, model: DecoderConfig, context_length: int, evaluation: EvaluationConfig) -> None:
    """Check that a model can learn a task in sequences of `context_length` and be tested on it.

    Raises:
        ValueError: it cannot; the line begins with the key of the recipe that has to change.
    """
    if task.vocabulary > model.vocab_size:
        raise ValueError(
            f"model.vocab_size: must be at least the {task.vocabulary} of task {task.kind}, got {model.vocab_size}"
        )
    longest = max(task.train_lengths)
    if longest > context_length:
        raise ValueError(
            f"training.context_length: must be at least the longest of task.train_lengths {longest}, "
            f"got {context_length}"
        )
    if evaluation.positions:
        raise ValueError(f"evaluation.positions: is of text, and task {task.kind} is none; leave it out")
    for length in evaluation.lengths:
        task.check_length("evaluation.lengths", length)
    if model.positions == "learned" and max(task.test_lengths) > model.max_positions and not evaluation.lengths:
        raise ValueError(
            f"task.test_lengths: must be at most model.max_positions {model.max_positions}, as positions are learned, "
            f"got {max(task.test_lengths)}"
        )
