"""Word problems of S5: the product of all permutations so far, asked after every token.

Merrill et al., "The Illusion of State in State-Space Models", arXiv 2404.08819: S5 is complete for NC1, so no layer
within TC0 tracks it at every length, unless the two are one.
"""

from itertools import permutations
from math import log2
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zoo.tasks.task import Case, Lengths, Sequences, Task

__all__ = ["S5"]

_PERMUTATIONS: NDArray[np.int64] = np.array(list(permutations(range(5))))
"""`[120, 5]`, in lexicographic order: where each permutation, by its id, takes 0 to 4."""
_NUMBERS = {tuple(permutation): number for number, permutation in enumerate(_PERMUTATIONS.tolist())}
_PRODUCTS: NDArray[np.int64] = np.array(
    [[_NUMBERS[tuple(second[first])] for second in _PERMUTATIONS] for first in _PERMUTATIONS]
)
"""`[120, 120]`: the id of the first permutation followed by the second."""


class S5(Task):
    """Random permutations of five things, after each of which the order that all so far lead to is asked.

    Token ids 0 to 119 are the permutations in lexicographic order, and so are the answers.
    """

    kind: Literal["s5"] = "s5"

    train_lengths: Lengths = (32, 64)
    """Tokens of the sequences that are trained on."""

    test_lengths: Lengths = (32, 64, 128, 256)
    """Tokens of the sequences that tell the accuracy after the last step."""

    @property
    def vocabulary(self) -> int:
        return len(_PERMUTATIONS)

    def bits(self, length: int) -> float:
        return length * log2(self.vocabulary)

    def draw(self, case: Case, count: int, generator: np.random.Generator) -> Sequences:
        tokens = generator.integers(self.vocabulary, size=(count, case.length))
        products = tokens.copy()
        for place in range(1, case.length):
            products[:, place] = _PRODUCTS[products[:, place - 1], tokens[:, place]]
        tracked = np.broadcast_to(np.arange(1, case.length + 1), tokens.shape)
        return Sequences(tokens, products, tracked.copy())
