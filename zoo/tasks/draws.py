"""Sequences as rows to train and to test on: from a seed and a number, without end and without memory.

No sequence is drawn for both sides: its tokens decide where it belongs, as a document's content does for a text.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.kernels.targets import IGNORED
from zoo.tasks.task import Case, Sequences, Task

__all__ = ["Rows", "Side", "is_held_back", "held_back_rows", "held_back_sequences", "training_rows"]

Side = Literal["training", "test"]
_HELD_BACK = 8  # one sequence in so many
_SIDES: dict[Side, int] = {"training": 0, "test": 1}
_FACTORS_SEED = 2**31 - 1


class Rows(NamedTuple):
    """Sequences one after the other in rows of one length, as documents of a text are."""

    tokens: NDArray[np.int64]
    """`[rows, T]`; what is left behind the last sequence of a row is zeros."""
    targets: NDArray[np.int64]
    """`[rows, T]`, -100 where nothing is asked."""
    starts: NDArray[np.bool_]
    """`[rows, T]`: where sequences begin, and where what is left behind them does."""


def training_rows(task: Task, rows: int, length: int, seed: int, number: int) -> Rows:
    """Return batch `number` of training: `rows` of `length` tokens, each of one of the task's training cases.

    Cases have equal chances to get a row. The same arguments give the same batch, on any machine.
    """
    return _packed(task, rows, length, "training", [seed, number])


def held_back_rows(task: Task, rows: int, length: int, number: int) -> Rows:
    """Return batch `number` of the training cases, of sequences that are held back: the same ones for every seed."""
    return _packed(task, rows, length, "test", [number])


def held_back_sequences(task: Task, case: Case, count: int) -> Sequences:
    """Return `count` sequences of a case that are held back: the same ones at every call."""
    depth = 0 if case.depth is None else 1 + round(case.depth * 10**6)
    return _draw(task, case, count, "test", _generator("test", [case.length, case.pairs or 0, depth]))


def is_held_back(tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which sequences `tokens [n, length]` are for tests, `[n]`: every eighth, by a hash of the tokens."""
    factors = np.random.default_rng(_FACTORS_SEED).integers(2**64, size=tokens.shape[1], dtype=np.uint64) | np.uint64(1)
    mixed = ((tokens.astype(np.uint64) + np.uint64(1)) * factors).sum(axis=1, dtype=np.uint64)
    # A product's low bits depend on low bits alone: the finaliser of SplitMix64 (Steele et al. 2014) spreads them.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) % np.uint64(_HELD_BACK) == 0


def _packed(task: Task, rows: int, length: int, side: Side, seed: list[int]) -> Rows:
    generator = _generator(side, seed)
    tokens = np.zeros((rows, length), dtype=np.int64)
    targets, starts = np.full_like(tokens, IGNORED), np.zeros_like(tokens, dtype=np.bool_)
    cases = task.training_cases()
    chosen = generator.integers(len(cases), size=rows)
    for index, case in enumerate(cases):
        own = np.flatnonzero(chosen == index)
        fitting = length // case.length
        filled = fitting * case.length
        drawn = _draw(task, case, len(own) * fitting, side, generator)
        tokens[own, :filled] = drawn.tokens.reshape(len(own), filled)
        targets[own, :filled] = drawn.targets.reshape(len(own), filled)
        starts[own, :: case.length] = True
    return Rows(tokens, targets, starts)


def _draw(task: Task, case: Case, count: int, side: Side, generator: np.random.Generator) -> Sequences:
    """Return `count` sequences of one side: those of the other are drawn again."""
    parts = [task.draw(case, 0, generator)]
    missing = count
    while missing:
        # A few more than are expected to be needed, so that there is seldom a third time.
        chance = 1 / _HELD_BACK if side == "test" else 1 - 1 / _HELD_BACK
        drawn = task.draw(case, int(missing / chance * 1.1) + 1, generator)
        fitting = np.flatnonzero(is_held_back(drawn.tokens) == (side == "test"))[:missing]
        parts.append(Sequences(*(array[fitting] for array in drawn)))
        missing -= len(fitting)
    return Sequences(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _generator(side: Side, seed: list[int]) -> np.random.Generator:
    return np.random.default_rng([_SIDES[side], *seed])
