"""Passkey retrieval: a number that is told somewhere in a long text is asked for at its end.

Mohtashami and Jaggi, "Landmark Attention", arXiv 2305.16300, in tokens of its own; by depth and length as in the
"needle in a haystack" tests.
"""

from collections import Counter
from math import log2
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from zoo.tasks.task import Case, Lengths, Sequences, Task, nothing_asked

__all__ = ["Passkey"]

_DIGITS = 10
_TOLD, _ASKED, _FILLER = _DIGITS, _DIGITS + 1, _DIGITS + 2

Depth = Annotated[float, Field(ge=0, le=1)]


class Passkey(Task):
    """Filler with a mark and a number of some digits inside, and at the end another mark, where the digits are asked.

    Digits and marks are nowhere else. In training the number stands anywhere; tests tell the accuracy at each of
    `depths`. The answer's digits are given as they should be, so that each is judged with those before it right.
    """

    kind: Literal["passkey"] = "passkey"

    train_lengths: Lengths = (128, 256)
    """Tokens of the sequences that are trained on."""

    test_lengths: Lengths = (128, 256, 512, 1024)
    """Tokens of the sequences that tell the accuracy after the last step."""

    depths: Annotated[tuple[Depth, ...], Field(min_length=1)] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Shares of the filler that stand before the number in tests."""

    digits: int = Field(5, ge=1, le=1000)
    """Of the number."""

    vocab_size: int = Field(64, ge=_FILLER + 2, le=2**16)
    """Token ids: ten digits, two marks, and filler."""

    @model_validator(mode="after")
    def _check_depths(self) -> Self:
        for depth, times in Counter(self.depths).items():
            if times > 1:
                raise ValueError(f"depths: {depth:g} stands {times} times")
        return self

    @property
    def vocabulary(self) -> int:
        return self.vocab_size

    def test_cases(self, lengths: tuple[int, ...]) -> tuple[Case, ...]:
        return tuple(Case(length, depth=depth) for length in lengths for depth in self.depths)

    def bits(self, length: int) -> float:
        return self.digits * log2(_DIGITS) + self._filler(length) * log2(self.vocab_size - _FILLER)

    def check_length(self, name: str, length: int) -> None:
        if self._filler(length) < 1:
            need = length - self._filler(length) + 1
            raise ValueError(f"{name}: must be at least {need}, for {self.digits} digits twice and marks, got {length}")
        super().check_length(name, length)

    def _filler(self, length: int) -> int:
        """Tokens of a sequence that are neither marks nor digits."""
        return length - 2 * self.digits - 1

    def draw(self, case: Case, count: int, generator: np.random.Generator) -> Sequences:
        filler, digits = self._filler(case.length), self.digits
        if case.depth is None:
            told = generator.integers(filler + 1, size=count)
        else:
            told = np.full(count, round(case.depth * filler))
        number = generator.integers(_DIGITS, size=(count, digits))
        sequences = nothing_asked(generator.integers(_FILLER, self.vocab_size, size=(count, case.length)))
        row, place = np.arange(count)[:, None], np.arange(digits)
        asked = case.length - digits
        sequences.tokens[row[:, 0], told] = _TOLD
        sequences.tokens[row, told[:, None] + 1 + place] = number
        sequences.tokens[:, asked] = _ASKED
        sequences.tokens[:, asked + 1 :] = number[:, :-1]
        sequences.targets[:, asked:] = number
        sequences.distances[:, asked:] = (asked - 1 - told)[:, None]
        return sequences
