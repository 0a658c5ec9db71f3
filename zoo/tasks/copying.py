"""Copying: a random string, a separator, and the string once more.

Jelassi et al., "Repeat After Me: Transformers are Better than State Space Models at Copying", arXiv 2402.01032.
"""

from math import log2
from typing import Literal

import numpy as np
from pydantic import Field

from zoo.tasks.task import Case, Lengths, Sequences, Task, nothing_asked

__all__ = ["Copying"]


class Copying(Task):
    """A string of half the length's symbols, and then its copy, of which every symbol is asked for.

    The copy is given as it should be, so that each answer is judged with those before it right.
    """

    kind: Literal["copy"] = "copy"

    train_lengths: Lengths = (32, 64, 128)
    """Tokens of the sequences that are trained on, string, separator and copy together; even."""

    test_lengths: Lengths = (32, 64, 128, 256)
    """Tokens of the sequences that tell the accuracy after the last step; even."""

    symbols: int = Field(26, ge=2, le=2**16 - 1)
    """Different symbols of a string; the id after them is the separator."""

    @property
    def vocabulary(self) -> int:
        return self.symbols + 1

    def bits(self, length: int) -> float:
        return length // 2 * log2(self.symbols)

    def check_length(self, name: str, length: int) -> None:
        if length % 2:
            raise ValueError(f"{name}: must be even, for a string and its copy, got {length}")
        super().check_length(name, length)

    def draw(self, case: Case, count: int, generator: np.random.Generator) -> Sequences:
        half = case.length // 2
        string = generator.integers(self.symbols, size=(count, half))
        separator = np.full((count, 1), self.symbols)
        sequences = nothing_asked(np.concatenate([string, separator, string[:, :-1]], axis=1))
        sequences.targets[:, half:] = string
        sequences.distances[:, half:] = half
        return sequences
