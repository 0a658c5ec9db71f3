"""Published tasks on zoo models and converted ones, by EleutherAI's lm-evaluation-harness."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import PreTrainedModel

from zoo.errors import InputError, nearest
from zoo.hf.folders import load_any
from zoo.hf.zoo_model import ZooForCausalLM
from zoo.report.tables import plain_table

try:
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ImportError("evaluate: needs an optional library (lm_eval): pip install 'mixer-zoo[eval]'") from error

__all__ = ["Evaluation", "Score", "evaluate"]

_FAULTS = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ImportError,
    NotImplementedError,
    TemplateError,
    DatasetsError,
)
"""What the harness raises for a task's file that says what it should not, or data that are not at hand."""


@dataclass(frozen=True)
class Score:
    """What a model reached on a task by one of its measures."""

    task: str
    measure: str
    value: float
    standard_error: float | None
    shots: int | None
    """Solved examples before each question; None: groups of tasks that differ in it."""

    samples: int


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model, in the order of the tasks."""

    model: str
    scores: tuple[Score, ...]

    def table(self) -> Table:
        """Return a table of a score a row."""
        table = plain_table("task", "measure", "value", "error", "shots", "samples", words=2)
        for score in self.scores:
            error = "" if score.standard_error is None else f"±{score.standard_error:.4f}"
            shots = "" if score.shots is None else str(score.shots)
            table.add_row(score.task, score.measure, f"{score.value:.4f}", error, shots, f"{score.samples:,}")
        return table

    def to_json(self) -> str:
        """Return all of it as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def evaluate(
    path: Path | str,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    context_length: int | None = None,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Evaluate a model on tasks of the harness.

    Args:
        path: a run, or a folder of transformers with its tokenizer: exported, converted or any other causal model.
        tasks: names that the harness knows, paths of YAML files of tasks, or of folders of such files, all of whose
            tasks are meant. A task's file may name functions, which are run.
        shots: solved examples before each question; None: as each task says.
        limit: so many questions of each task, the first ones; None: all.
        batch_size: sequences at a time, which changes nothing else.
        context_length: longer ones are cut on the left; None: what a run was trained at, or what the config says.
        device: by default a GPU if there is one, else the CPU.

    Raises:
        CheckpointError: the run has no checkpoint yet, or it is damaged.
        InputError: there is no such model or task, or what a task reads is not at hand.
    """
    for name, value in (("limit", limit), ("batch_size", batch_size), ("context_length", context_length)):
        if value is not None and value < 1:
            raise InputError(f"{name}: expected a whole number from 1 on, was {value}")
    known, wanted = _find(tasks)
    model, tokenizer, trained_at = load_any(Path(path), device=device)
    length = context_length or trained_at or _longest(model)
    harness = _ZooModel if isinstance(model, ZooForCausalLM) else HFLM
    wrapped = harness(model, backend="causal", tokenizer=tokenizer, batch_size=batch_size, max_length=length)
    try:
        found = simple_evaluate(
            wrapped, tasks=wanted, num_fewshot=shots, limit=limit, task_manager=known, log_samples=False
        )
    except _FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"tasks: {', '.join(tasks)} cannot be run: {reason}") from error
    assert found is not None  # only other processes than the first get nothing
    return Evaluation(str(path), tuple(_scores(found)))


class _ZooModel(HFLM):
    """The harness's class for transformers, but that the separator which starts a text is not itself scored.

    A text that is scored whole gets a prefix there, beside the one that its tokenizer gives it.
    """

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        adds = vars(self)["add_bos_token"]
        self.add_bos_token = False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self.add_bos_token = adds


def _find(tasks: Sequence[str]) -> tuple[TaskManager, list[str]]:
    """Return the harness's register with tasks of one's own in it, and the names of all that are meant."""
    paths = [Path(task) for task in tasks if Path(task).is_dir() or Path(task).suffix == ".yaml"]
    folders = [path for path in paths if path.is_dir()]
    names = [task for task in tasks if Path(task) not in paths]
    if not tasks:
        raise InputError("tasks: expected a task at least, got none")
    for path in paths:
        if not path.exists():
            raise InputError(f"tasks: {str(path)!r} is no file")
    known = TaskManager(include_path=folders or None, include_defaults=bool(names))
    for name in names:
        if name not in known.all_tasks:
            raise InputError(
                f"tasks: {name!r} is neither a task of the harness nor a path{nearest(name, known.all_tasks)}"
            )
    for folder in folders:
        own = TaskManager(include_path=folder, include_defaults=False).all_subtasks
        if not own:
            raise InputError(f"tasks: {str(folder)!r} holds no YAML file of a task")
        names += own
    return known, [*names, *(str(path) for path in paths if path not in folders)]


def _longest(model: PreTrainedModel) -> int | None:
    """Return the most tokens that a zoo model can read; None: any number, or the config of another model says it."""
    config = model.decoder.config if isinstance(model, ZooForCausalLM) else None
    return config.max_positions if config is not None and config.positions == "learned" else None


def _scores(found: Any) -> Iterator[Score]:
    """Yield what the harness found; it calls a measure `name,filter`, and its error `name_stderr,filter`."""
    for task, values in found["results"].items():
        for key, value in values.items():
            measure, _, kind = key.partition(",")
            if measure.endswith("_stderr") or not isinstance(value, int | float) or not kind:
                continue
            error = values.get(f"{measure}_stderr,{kind}")
            yield Score(
                task=task,
                measure=measure if kind == "none" else f"{measure} ({kind})",
                value=float(value),
                standard_error=float(error) if isinstance(error, int | float) else None,
                shots=found["n-shot"].get(task),
                samples=found["n-samples"].get(task, {}).get("effective", values.get("sample_len", 0)),
            )
