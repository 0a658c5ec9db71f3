"""Multi-query associative recall: keys with values, then the keys once more, each to be answered with its value.

Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models", arXiv 2312.04927; settings of
HazyResearch/zoology, `original_mqar_configs.py` and `multiquery_ar`.
"""

from collections.abc import Mapping
from math import log2
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zoo.limits import LONGEST
from zoo.tasks.task import Case, Lengths, Sequences, Task, nothing_asked

__all__ = ["Mqar"]

# Published pairs by length; a quarter of the length, the most that fit, at others.
_TRAIN_PAIRS = {64: (4,), 128: (8,), 256: (16, 32, 64)}
_TEST_PAIRS = {64: (4, 8, 16)}


class Mqar(Task):
    """Multi-query associative recall with Zoology's settings.

    A sequence begins with `pairs` of a key and a value, all keys different and all values too. Each key comes once more
    behind them, at a gap drawn by a power law, and is to be answered with its value. All else is random tokens.
    """

    kind: Literal["mqar"] = "mqar"

    train_lengths: Lengths = (64, 128, 256)
    """Tokens of the sequences that are trained on."""

    test_lengths: Lengths = (64, 128, 256, 512, 1024)
    """Tokens of the sequences that tell the accuracy after the last step."""

    pairs: int | None = Field(None, ge=1, le=LONGEST)
    """Keys with values in every sequence; None: Zoology's, which are 4 to 64 in training and a quarter of the length
    in tests (at 64 tokens also 4 and 8)."""

    vocab_size: int = Field(8192, ge=16, le=2**16)
    """Token ids: keys are from the lower half, without 0, values from the upper."""

    power: float = Field(0.01, gt=0)
    """Of the power law of gaps: a key comes again after `g` slots of two tokens with a weight of `g ** (power - 1)`."""

    @property
    def vocabulary(self) -> int:
        return self.vocab_size

    def training_cases(self) -> tuple[Case, ...]:
        return self._cases(self.train_lengths, _TRAIN_PAIRS)

    def test_cases(self, lengths: tuple[int, ...]) -> tuple[Case, ...]:
        return self._cases(lengths, _TEST_PAIRS)

    def _cases(self, lengths: tuple[int, ...], published: Mapping[int, tuple[int, ...]]) -> tuple[Case, ...]:
        if self.pairs is not None:
            return tuple(Case(length, pairs=self.pairs) for length in lengths)
        return tuple(Case(length, pairs=pairs) for length in lengths for pairs in published.get(length, (length // 4,)))

    def bits(self, length: int) -> float:
        return length // 4 * log2(self.vocab_size)  # of what no pair needs

    def check_length(self, name: str, length: int) -> None:
        pairs, keys = self.pairs or length // 4, self.vocab_size // 2 - 1
        if 4 * pairs > length:
            raise ValueError(f"{name}: must be at least 4 tokens a pair, {4 * pairs} for pairs {pairs}, got {length}")
        if pairs > keys:
            raise ValueError(
                f"{name}: must not take more pairs than vocab_size {self.vocab_size} has keys, {keys}, "
                f"got {length} for {pairs}"
            )
        super().check_length(name, length)

    def draw(self, case: Case, count: int, generator: np.random.Generator) -> Sequences:
        assert case.pairs is not None
        half, pairs = self.vocab_size // 2, case.pairs
        keys = 1 + _distinct(generator, half - 1, count, pairs)
        values = half + _distinct(generator, self.vocab_size - half, count, pairs)
        sequences = nothing_asked(generator.integers(self.vocab_size, size=(count, case.length)))
        sequences.tokens[:, : 2 * pairs : 2] = keys
        sequences.tokens[:, 1 : 2 * pairs : 2] = values
        asked = 2 * pairs + 2 * self._gaps(generator, (case.length - 2 * pairs) // 2, count, pairs)
        row = np.arange(count)[:, None]
        sequences.tokens[row, asked] = keys
        sequences.targets[row, asked] = values
        sequences.distances[row, asked] = asked - np.arange(1, 2 * pairs, 2)
        return sequences

    def _gaps(self, generator: np.random.Generator, slots: int, count: int, pairs: int) -> NDArray[np.int64]:
        """Return different slots for each pair, `[count, pairs]`, one drawn after the other by the power law."""
        # The order of weights with Gumbel noise on their logarithms is that of draws without replacement.
        weights = (self.power - 1) * np.log(np.arange(1, slots + 1))
        noisy = weights + generator.gumbel(size=(count, slots))
        return np.argsort(-noisy, axis=1)[:, :pairs]


def _distinct(generator: np.random.Generator, choices: int, count: int, size: int) -> NDArray[np.int64]:
    """Return for each of `count` rows `size` different numbers below `choices`, in random order (Floyd's algorithm)."""
    taken = np.zeros((count, choices), dtype=np.bool_)
    drawn = np.zeros((count, size), dtype=np.int64)
    row = np.arange(count)
    for place, last in enumerate(range(choices - size, choices)):
        candidate = generator.integers(last + 1, size=count)
        drawn[:, place] = np.where(taken[row, candidate], last, candidate)
        taken[row, drawn[:, place]] = True
    return generator.permuted(drawn, axis=1)
