"""The result of a finished run, in memory and in its folder."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from zoo.errors import CheckpointError
from zoo.reading import hash_document, read_regular
from zoo.report.files import replace_file
from zoo.training.measures import Accuracy, LengthLoss, PositionLoss
from zoo.training.run.metrics import Extent

__all__ = ["Summary", "TrainingResult", "read_result", "summarise", "write_result"]


@dataclass(frozen=True)
class TrainingResult:
    """A finished run in numbers; where it was resumed, all its parts together."""

    folder: Path
    parameters: int
    steps: int
    tokens: int
    """Tokens trained on."""
    flops: int
    """Floating-point operations of training, counted as three forward passes; a multiply-add is two."""
    seconds: float
    """Wall time of training steps, without compilation, evaluation and checkpoints."""
    tokens_per_second: float
    """Median over the stretches between two lines of training metrics."""
    compile_seconds: float
    graph_breaks: int
    recompiles: int
    """Graphs beyond one for training steps and one for evaluations."""
    final_loss: float
    """Training loss of the last lines of metrics, nats per token."""
    final_validation_loss: float
    """After the last step, nats per token; of a task, nats per answer."""
    final_bits_per_byte: float
    """Validation loss after the last step; of a task, where each answer counts as a byte, bits per answer."""
    best_bits_per_byte: float
    """The lowest of all evaluations after step 0."""
    corpus_hash: str
    """sha256 of the corpus, as hexadecimal; of a task, of its settings."""
    positions: list[PositionLoss] = field(default_factory=list)
    """The loss by position in the document, where `evaluation.positions` asks for it."""
    lengths: list[LengthLoss] = field(default_factory=list)
    """The validation loss at each of `evaluation.lengths`, of text."""
    accuracy: list[Accuracy] = field(default_factory=list)
    """A task's accuracy, by length and what else makes it harder."""
    state_bytes: int | None = None
    """Of the tensors of the model's state while it decodes one sequence, at the longest length that is trained or
    measured on; None: of an earlier version."""
    peak_memory_bytes: int | None = None
    """The most memory that training took, by the allocator of the (first) GPU; None: trained on a CPU."""


class Summary(TypedDict):
    """The fields of a `TrainingResult` that follow from the metrics of a whole run."""

    tokens_per_second: float
    final_loss: float
    final_validation_loss: float
    final_bits_per_byte: float
    best_bits_per_byte: float


def summarise(records: Sequence[Mapping[str, Any]]) -> Summary:
    """Return what the metrics of a whole run come to.

    Raises:
        CheckpointError: they are not those of a whole run.
    """
    training = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation" and record["step"] > 0]
    try:
        return {
            "tokens_per_second": statistics.median(record["tokens_per_second"] for record in training),
            "final_loss": training[-1]["loss"],
            "final_validation_loss": validation[-1]["loss"],
            "final_bits_per_byte": validation[-1]["bits_per_byte"],
            "best_bits_per_byte": min(record["bits_per_byte"] for record in validation),
        }
    except (statistics.StatisticsError, IndexError, KeyError, TypeError):
        raise CheckpointError("metrics.jsonl: is not whole; delete the run's folder to train it again") from None


def write_result(path: Path, result: TrainingResult, metrics: Extent) -> None:
    """Write a result as JSON, without its folder, which may be moved, but with the extent of the metrics beside it.

    Raises:
        TrainingError: the file cannot be written.
    """
    fields = asdict(result) | {"metrics": list(metrics)}
    del fields["folder"]
    replace_file(path, (json.dumps(fields | {"sha256": hash_document(fields)}, indent=1) + "\n").encode())


def read_result(path: Path) -> tuple[TrainingResult, Extent | None]:
    """Read what `write_result` wrote; earlier versions wrote no extent.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        fields = json.loads(read_regular(path))
        if not {"metrics", "sha256"}.isdisjoint(fields) and fields.pop("sha256") != hash_document(fields):
            raise ValueError
        metrics = Extent(*fields.pop("metrics")) if "metrics" in fields else None
        return TrainingResult(folder=path.parent, **fields), metrics
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        hint = "delete it and train again, which makes it anew from the last checkpoint"
        raise CheckpointError(f"{path}: not the result of a run; {hint}") from None
