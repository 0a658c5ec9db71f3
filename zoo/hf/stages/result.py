"""What stages came to, and the one file that says it."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, InputError
from zoo.reading import read_regular
from zoo.report.files import replace_file

__all__ = ["RESULTS", "StageResult", "write_stage"]

RESULTS = "stages.json"
"""Name of the file in a stage's folder."""


@dataclass(frozen=True)
class StageResult:
    """A finished stage in numbers; where it was resumed, all its parts together. `print` it."""

    stage: str
    steps: int
    tokens: int
    """Tokens trained on."""
    seconds: float
    """Wall time of training steps."""
    trained_parameters: int
    losses: list[tuple[int, float]]
    """Steps, and the mean loss of those up to each since the one before: a share of 1 in transfer, nats per token in
    distillation."""
    perplexity_before: float
    """On held-back text, of the model as the stage found it."""
    perplexity_after: float
    teacher_perplexity: float
    """On the same text, of the model that is followed."""
    evaluation_tokens: int
    """Held-back tokens that perplexities are measured on."""
    corpus_hash: str
    """sha256 of the text, as hexadecimal."""
    settings: dict[str, Any]
    """Of the `Stage`, and what else was asked for."""

    def __str__(self) -> str:
        return (
            f"{self.stage}: {self.steps:,} steps, {self.tokens:,} tokens, {self.trained_parameters:,} parameters, loss "
            f"{self.losses[0][1]:.4g} -> {self.losses[-1][1]:.4g}, perplexity {_told(self.perplexity_before)} -> "
            f"{_told(self.perplexity_after)} (teacher {_told(self.teacher_perplexity)})"
        )


def _told(perplexity: float) -> str:
    return f"{perplexity:,.0f}" if perplexity >= 1000 or math.isinf(perplexity) else f"{perplexity:.4g}"


def write_stage(folder: Path, result: StageResult) -> None:
    """Put a stage's result into the folder's file, beside those of the stages before.

    Raises:
        CheckpointError: the file that is there is none of results.
        InputError: it cannot be written.
    """
    path = folder / RESULTS
    stages: Any = {}
    if path.exists():
        try:
            stages = json.loads(read_regular(path))
        except (OSError, ValueError, RecursionError):
            stages = None
        if not isinstance(stages, dict):
            raise CheckpointError(f"{path}: is damaged, no results of stages; delete it and run the last stage again")
    stages = stages | {result.stage: asdict(result)}
    replace_file(path, (json.dumps(stages, indent=1) + "\n").encode(), InputError)
