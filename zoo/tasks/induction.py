"""Induction heads: what came after a mark is to come after it once more.

Olsson et al., "In-context Learning and Induction Heads", arXiv 2209.11895; as a task of one mark among random tokens,
Gu and Dao, "Mamba", arXiv 2312.00752, whose vocabulary of 16 and training length of 256 are the defaults.
"""

from math import log2
from typing import Literal

import numpy as np
from pydantic import Field

from zoo.tasks.task import Case, Lengths, Sequences, Task, nothing_asked

__all__ = ["Induction"]


class Induction(Task):
    """Random tokens with a mark among them and the same mark at the end, where the token after the first is asked."""

    kind: Literal["induction"] = "induction"

    train_lengths: Lengths = (256,)
    """Tokens of the sequences that are trained on."""

    test_lengths: Lengths = (64, 128, 256, 512, 1024)
    """Tokens of the sequences that tell the accuracy after the last step."""

    vocab_size: int = Field(16, ge=3, le=2**16)
    """Token ids; the last one is the mark."""

    @property
    def vocabulary(self) -> int:
        return self.vocab_size

    def bits(self, length: int) -> float:
        return (length - 2) * log2(self.vocab_size - 1)

    def draw(self, case: Case, count: int, generator: np.random.Generator) -> Sequences:
        mark, last = self.vocab_size - 1, case.length - 1
        sequences = nothing_asked(generator.integers(mark, size=(count, case.length)))
        row, marked = np.arange(count), generator.integers(last - 1, size=count)
        sequences.tokens[row, marked] = sequences.tokens[:, last] = mark
        sequences.targets[:, last] = sequences.tokens[row, marked + 1]
        sequences.distances[:, last] = last - (marked + 1)
        return sequences
