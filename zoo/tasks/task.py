"""What every task is: a strict config that draws sequences with questions, and says which ones to train and to test on.

A task knows numbers alone: sequences are arrays, and what becomes of them is for those who train.
"""

from collections import Counter
from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zoo.config import Config
from zoo.kernels.targets import IGNORED
from zoo.limits import LONGEST

__all__ = ["Case", "Lengths", "Sequences", "Task", "nothing_asked"]

_FEWEST_BITS = 8
"""Of sequences there must be 2^8 for some to be held back: `zoo.tasks.draws` keeps every eighth for tests."""

Lengths = Annotated[tuple[Annotated[int, Field(ge=4, le=LONGEST)], ...], Field(min_length=1)]
"""Tokens of sequences, each length once."""


class Case(NamedTuple):
    """What sequences have in common that are drawn together."""

    length: int
    """Tokens of a sequence."""
    pairs: int | None = None
    """Keys with values that each sequence holds."""
    depth: float | None = None
    """Where what is asked for stands, from 0 (the beginning) to 1; None: anywhere."""


class Sequences(NamedTuple):
    """Sequences of one length."""

    tokens: NDArray[np.int64]
    """`[n, length]`."""
    targets: NDArray[np.int64]
    """`[n, length]`: what to predict after each token; -100 where nothing is asked."""
    distances: NDArray[np.int64]
    """`[n, length]`: how many tokens back from a question its answer stands, or, where a state is tracked, how many
    tokens it comes from; at least 1, and 0 where nothing is asked."""


class Task(Config):
    """A task of synthetic sequences."""

    kind: str
    """Which task."""

    train_lengths: Lengths
    """Tokens of the sequences that are trained on."""

    test_lengths: Lengths
    """Tokens of the sequences that tell the accuracy after the last step."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        raise NotImplementedError

    def training_cases(self) -> tuple[Case, ...]:
        """Return what is trained on, in equal shares of tokens."""
        return tuple(Case(length) for length in self.train_lengths)

    def test_cases(self, lengths: tuple[int, ...]) -> tuple[Case, ...]:
        """Return what accuracy is told for at each of `lengths`."""
        return tuple(Case(length) for length in lengths)

    def bits(self, length: int) -> float:
        """Return log2 of how many sequences of a length there are, or of a number that is no larger."""
        raise NotImplementedError

    def check_length(self, name: str, length: int) -> None:
        """Raise a ValueError, which starts with `name`, unless sequences may have that length."""
        if self.bits(length) < _FEWEST_BITS:
            raise ValueError(
                f"{name}: must be of more than {2**_FEWEST_BITS} different sequences, some of which are held back, "
                f"got {length}"
            )

    def draw(self, case: Case, count: int, generator: np.random.Generator) -> Sequences:
        """Return `count` sequences of a case, each drawn independently of the others."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        for name, lengths in (("train_lengths", self.train_lengths), ("test_lengths", self.test_lengths)):
            for length, times in Counter(lengths).items():
                if times > 1:
                    raise ValueError(f"{name}: {length} stands {times} times")
                self.check_length(name, length)
        return self


def nothing_asked(tokens: NDArray[np.int64]) -> Sequences:
    """Return sequences `tokens [n, length]` without questions, for a task to ask its own in."""
    return Sequences(tokens, np.full_like(tokens, IGNORED), np.zeros_like(tokens))
