"""Parity: whether the number of ones so far is odd, asked after every token.

One of the formal languages of Deletang et al., "Neural Networks and the Chomsky Hierarchy", arXiv 2207.02098. Which
eigenvalues a linear recurrence needs for it: Grazzi et al., arXiv 2411.12537.
"""

from typing import Literal

import numpy as np

from zoo.tasks.task import Case, Lengths, Sequences, Task

__all__ = ["Parity"]


class Parity(Task):
    """Random bits, after each of which the parity of all so far is asked: a state of one bit."""

    kind: Literal["parity"] = "parity"

    train_lengths: Lengths = (32, 64)
    """Tokens of the sequences that are trained on."""

    test_lengths: Lengths = (32, 64, 128, 256)
    """Tokens of the sequences that tell the accuracy after the last step."""

    @property
    def vocabulary(self) -> int:
        return 2

    def bits(self, length: int) -> float:
        return length

    def draw(self, case: Case, count: int, generator: np.random.Generator) -> Sequences:
        bits = generator.integers(2, size=(count, case.length))
        tracked = np.broadcast_to(np.arange(1, case.length + 1), bits.shape)
        return Sequences(bits, bits.cumsum(axis=1) % 2, tracked.copy())
