"""Advice where a model does not fit into memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zoo.errors import UntrainableError
from zoo.recipe.training import TrainingConfig

__all__ = ["BUILDING", "READING", "PeakMemory", "advice", "is_out_of_memory", "naming_memory_errors"]

BUILDING = "while the model was built: a smaller model.width or model.layers, or more processes (torchrun), take less"
READING = "while data.source was read: a part of it, or token shards (*.bin), which stay on disk, take less"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what caused it, says that memory ran out."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(cause).lower():
            return True
        if "can't allocate memory" in str(cause):  # what a CPU says
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def advice(config: TrainingConfig) -> str:
    """Say what takes the memory of a training step, and what to change, most promising first."""
    changes = {
        "none": "training.checkpointing=selective keeps a fraction",
        "selective": "training.checkpointing=full keeps least",
        "full": "",
    }[config.checkpointing]
    smaller = []
    if config.batch_size > 1:
        smaller.append("a smaller training.batch_size (training.accumulate makes up for it)")
    if config.context_length > 1:
        smaller.append("a shorter training.context_length")
    wanted = "; ".join(part for part in (changes, " or ".join(smaller)) if part)
    return (
        f"at training.context_length {config.context_length:,}, training.batch_size {config.batch_size}, "
        f"training.checkpointing {config.checkpointing}: {wanted}"
    )


class PeakMemory:
    """The most memory that a run has taken on a GPU, by torch's allocator; on a CPU, which has none, nothing is told.

    Args:
        device: that the run computes on.
        before: what an earlier part of the run came to.
    """

    def __init__(self, device: torch.device, before: int | None = None) -> None:
        self._device, self._before = device, before
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> int | None:
        """Return the peak from the beginning of the run to now."""
        if self._device.type != "cuda":
            return None
        return max(torch.cuda.max_memory_allocated(self._device), self._before or 0)


@contextmanager
def naming_memory_errors(what: str) -> Iterator[None]:
    """Turn a lack of memory into one line that says what to change.

    Args:
        what: when it happened, and what takes less.

    Raises:
        UntrainableError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UntrainableError(f"out of memory {what}") from error
