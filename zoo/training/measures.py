"""What is measured of a trained model, as `result.json` holds it, and how scores are counted into it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import NamedTuple, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zoo.data import Batch

__all__ = ["Accuracy", "Judge", "LengthLoss", "Measures", "PositionLoss", "Scores", "Tally", "doubling", "finite"]


class PositionLoss(TypedDict):
    """The loss of the targets at some positions in their documents, of which the first token of text is 0."""

    start: int
    end: int
    """The first position behind them."""
    loss: float | None
    """Nats per token; None where no document is so long, or where it is not finite."""
    tokens: int
    """Targets that it is the mean of."""


class LengthLoss(TypedDict):
    """The validation loss in contexts of one length."""

    length: int
    loss: float | None
    """Nats per token; None where it is not finite, as may be in contexts longer than the model was trained on."""
    bits_per_byte: float | None
    tokens: int
    """Targets that it is the mean of."""


class Accuracy(TypedDict):
    """The share of a task's answers that are right, of sequences with something in common.

    Where `distance` is None, of all of a case; the others part the same answers by their distance.
    """

    length: int
    """Tokens of a sequence."""
    pairs: int | None
    """Keys with values in it; None: the task has none."""
    distance: int | None
    """From a question to what it needs: this many tokens, or more but fewer than twice as many."""
    depth: float | None
    """Where what is asked for stands, from 0 to 1; None: anywhere."""
    accuracy: float
    answers: int
    """How many are asked for."""


@dataclass(frozen=True)
class Measures:
    """What one model comes to; lists that do not apply, or are not asked for, are empty."""

    positions: list[PositionLoss] = field(default_factory=list)
    lengths: list[LengthLoss] = field(default_factory=list)
    accuracy: list[Accuracy] = field(default_factory=list)


class Scores(NamedTuple):
    """What each target of a batch was given, on the host; 0 and False where nothing is asked."""

    losses: NDArray[np.float64]
    """`[B, T]`, nats."""
    hits: NDArray[np.bool_]
    """`[B, T]`: whether the likeliest token was right."""


class Judge(Protocol):
    """A model that says how good it is on a batch, whole over all processes."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch in nats per target, 0-d."""

    def scores(self, batch: Batch, *, marked: bool) -> Scores:
        """Return the scores of every target.

        Args:
            batch: of any size.
            marked: whether its resets count; otherwise each row is one sequence.
        """


class Tally:
    """Sums of values by group, for means of what comes in parts."""

    def __init__(self, groups: int) -> None:
        self.sums, self.counts = np.zeros(groups), np.zeros(groups, dtype=np.int64)

    def add(self, groups: NDArray[np.integer], values: NDArray[np.generic]) -> None:
        """Add `values [n]`, each to the group of that number in `groups [n]`."""
        self.sums += np.bincount(groups, weights=values, minlength=len(self.sums))
        self.counts += np.bincount(groups, minlength=len(self.counts))

    def means(self) -> Iterator[tuple[int, float | None, int]]:
        """Yield each group's number, mean (None of nothing, or where it is not finite) and count."""
        for group, (total, count) in enumerate(zip(self.sums.tolist(), self.counts.tolist(), strict=True)):
            yield group, finite(total / count) if count else None, count


def finite(value: float) -> float | None:
    """Return a number that JSON can hold; None stands for all others."""
    return value if isfinite(value) else None


def doubling(numbers: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the interval that each number lies in: 0 alone, 1 alone, 2 and 3, 4 to 7, and so on by powers of two."""
    return np.frexp(numbers)[1]
