"""A small text for stages, and what a stopped stage is."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.data import Corpus, RawTokens, TokenStream
from zoo.hf import Stage
from zoo.training import SilentProgress

from ..tiny import VOCABULARY

SEPARATOR = 0


def text(seed: int = 0) -> Corpus:
    """Return a text of short documents in which one token says much of the next."""
    rng = np.random.default_rng(seed)
    tokens = (np.cumsum(rng.integers(1, 4, 1500)) % (VOCABULARY - 1)) + 1
    tokens[::13] = SEPARATOR
    sides = TokenStream.of(tokens[:1200], SEPARATOR), TokenStream.of(tokens[1200:], SEPARATOR)
    return Corpus(*sides, f"{seed:064x}", VOCABULARY, RawTokens(VOCABULARY, SEPARATOR))


def stage(**changes: Any) -> Stage:
    """Return a short stage."""
    values = {"context_length": 16, "batch_size": 4, "steps": 12, "evaluation_tokens": 128, "log_every": 3}
    return Stage(**(values | {"learning_rate": 1e-2, "checkpoint_every": 4} | changes))


class StoppedError(Exception):
    """Stands for a machine that goes down."""


class StopAfter(SilentProgress):
    """Stops a stage after so many steps."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def advance(self, step: int) -> None:
        if step == self._steps:
            raise StoppedError


class Lines(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Mapping[str, Any]] = []

    def metrics(self, record: Mapping[str, Any]) -> None:
        self.told.append(record)
