"""Batches of context windows: which tokens a training step sees is a pure function of the seed and the step."""

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.data.stream import TokenStream
from zoo.errors import CorpusError, InputError

__all__ = ["Batch", "Batches", "CountedBatch", "validation_batches"]


class Batch(NamedTuple):
    """Windows of `T` tokens and what follows each token."""

    tokens: Tensor
    """`[B, T]` int64."""
    targets: Tensor
    """`[B, T]` int64, the token after each of `tokens`; separators are targets like any other."""
    resets: Tensor
    """`[B, T]` bool, True where a token starts a document and so forgets everything before it."""


class CountedBatch(Batch):
    """Windows of a text whose tokens do not tell how many bytes they stand for."""

    byte_count: int
    """Bytes of text that fall to the targets."""

    def __new__(cls, batch: Batch, byte_count: int) -> Self:
        """Return `batch` with its bytes."""
        counted = super().__new__(cls, *batch)
        counted.byte_count = byte_count
        return counted


class Batches:
    """Training batches over a stream, without end.

    An epoch cuts the stream into windows that do not overlap, from a start that differs by epoch (so that other tokens
    stand at the windows' edges), and visits each once in random order. A batch may reach over the end of an epoch.
    Nothing is remembered between calls: to resume is to ask for the next step.

    Args:
        stream: the tokens; at least `context_length + 1`.
        batch_size: windows a batch, over all ranks.
        context_length: tokens a window.
        seed: of the order, not negative.
        rank: which share of every batch this process gets; the shares of all ranks joined are the whole batch.
        world_size: number of processes; divides `batch_size`.

    Raises:
        InputError: a number is out of its range.
        CorpusError: the stream is too short for one window.
    """

    def __init__(
        self,
        stream: TokenStream,
        batch_size: int,
        context_length: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_sizes(stream, batch_size, context_length)
        if seed < 0:
            raise InputError(f"seed: expected 0 or more, got {seed}")
        if world_size < 1 or batch_size % world_size:
            raise InputError(f"world_size: expected a divisor of batch_size {batch_size}, got {world_size}")
        if not 0 <= rank < world_size:
            raise InputError(f"rank: expected 0 to {world_size - 1}, got {rank}")
        self._stream = stream
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed
        share = batch_size // world_size
        self._rows = np.arange(rank * share, (rank + 1) * share)
        # One window's worth of tokens is left free, so that every start from 0 to context_length - 1 fits.
        self._windows = max(1, len(stream) // context_length - 1)
        self._starts_by_epoch: dict[int, NDArray[np.int64]] = {}

    @property
    def windows_per_epoch(self) -> int:
        """How many windows an epoch visits."""
        return self._windows

    def batch(self, step: int) -> Batch:
        """Return batch number `step`, counted from 0, of `batch_size / world_size` rows.

        Raises:
            InputError: `step` is negative.
        """
        if step < 0:
            raise InputError(f"step: expected 0 or more, got {step}")
        epochs, places = np.divmod(step * self._batch_size + self._rows, self._windows)
        starts = [self._epoch_starts(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)]
        return _cut(self._stream, starts, self._context_length)

    def _epoch_starts(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._starts_by_epoch:
            generator = np.random.default_rng([self._seed, epoch])
            offset = generator.integers(
                min(self._context_length, len(self._stream) - self._windows * self._context_length)
            )
            starts = offset + self._context_length * generator.permutation(self._windows)
            # A batch seldom spans more than two epochs; older orders are drawn again when they are asked for.
            self._starts_by_epoch = dict([*self._starts_by_epoch.items(), (epoch, starts)][-2:])
        return self._starts_by_epoch[epoch]


def validation_batches(stream: TokenStream, batch_size: int, context_length: int, max_tokens: int) -> list[Batch]:
    """Return batches that are the same at every call, of windows spread evenly over the stream without overlap.

    All have one shape, so that a compiled model sees one: `[min(batch_size, windows in the stream), context_length]`.
    They hold at most `max_tokens` tokens, but at least one batch is returned. Where the stream states bytes for each
    token they are `CountedBatch`es.

    Raises:
        InputError: a size is below 1.
        CorpusError: the stream is too short for one window.
    """
    _check_sizes(stream, batch_size, context_length)
    available = (len(stream) - 1) // context_length
    rows = min(batch_size, available)
    count = max(1, min(available, max_tokens // context_length) // rows)
    starts = context_length * (np.arange(count * rows) * available // (count * rows))
    shares = [starts[first : first + rows] for first in range(0, count * rows, rows)]
    return [_counted(stream, _cut(stream, share, context_length), share) for share in shares]


def _check_sizes(stream: TokenStream, batch_size: int, context_length: int) -> None:
    for name, size in (("batch_size", batch_size), ("context_length", context_length)):
        if size < 1:
            raise InputError(f"{name}: expected 1 or more, got {size}")
    if len(stream) <= context_length:
        raise CorpusError(
            f"{stream.name}: {len(stream)} tokens are too few for context_length {context_length}, "
            f"which takes at least {context_length + 1}"
        )


def _counted(stream: TokenStream, batch: Batch, starts: Iterable[np.int64]) -> Batch:
    if stream.byte_counts is None:
        return batch
    length = batch.targets.shape[1]
    counts = (stream.byte_counts[start + 1 : start + length + 1] for start in map(int, starts))
    return CountedBatch(batch, sum(int(count.sum()) for count in counts))


def _cut(stream: TokenStream, starts: Iterable[np.int64], length: int) -> Batch:
    windows = np.stack([stream[start : start + length + 1] for start in map(int, starts)]).astype(np.int64)
    tokens, targets = torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(windows[:, 1:].copy())
    resets = torch.zeros_like(tokens, dtype=torch.bool) if stream.separator is None else tokens == stream.separator
    return Batch(tokens, targets, resets)
