"""Choosing the next token from logits, without ever asking the device for a value, so that a CUDA graph can hold it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.errors import InputError

__all__ = ["NOTHING", "Sampling", "check_whole"]

NOTHING = -1
"""What is chosen where logits are NaN."""


def check_whole(name: str, value: int, least: int) -> None:
    """Raise an InputError unless the option is a whole number from `least` on."""
    if not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name}: expected a whole number from {least} on, was {value!r:.60}")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the likeliest tokens that together reach this probability, of those that `top_k` leaves.
        tokens: choose among so many first ones only, which a tokenizer knows of a vocabulary that is padded; None: all.

    Raises:
        InputError: an option out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature: expected a number from 0 on, was {self.temperature}")
        if self.top_k is not None:
            check_whole("top_k", self.top_k, 1)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p: expected above 0 and at most 1, was {self.top_p}")

    def choose(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a token a row, `[B]` int64, for logits `[B, vocab]`; -1 where the best of them is NaN.

        A sample is the winner of a race: of exponential clocks with rates `p_i`, clock i rings first with probability
        `p_i`. It needs no sum and no search, and draws as many numbers whatever the logits are.

        Args:
            generator: on the logits' device; None: torch's default one.
        """
        logits = logits[:, : self.tokens]
        if self.temperature == 0:
            best, winner = logits.max(dim=-1)
            return winner.masked_fill(best.isnan(), NOTHING)
        scores, order = self._limit(logits.float() / self.temperature)
        rings = scores.new_empty(scores.shape).exponential_(generator=generator)  # in the same order for any layout
        best, winner = (scores - rings.log()).max(dim=-1)
        winner = winner if order is None else order.gather(-1, winner[:, None])[:, 0]
        return winner.masked_fill(best.isnan(), NOTHING)

    def _limit(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the scores that may win, others being `-inf`, and which tokens they belong to (None: all in order)."""
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            scores, order = scores.topk(self.top_k, dim=-1)  # likeliest first, without sorting the whole vocabulary
        elif self.top_p is not None:
            scores, order = scores.sort(dim=-1, descending=True)
        else:
            return scores, None
        if self.top_p is not None:
            probabilities = scores.softmax(dim=-1)
            before = probabilities.cumsum(dim=-1) - probabilities
            # The first is always kept: its own sum may not come out as exactly zero.
            before[:, 0] = 0
            scores = scores.masked_fill(before >= self.top_p, -math.inf)
        return scores, order
