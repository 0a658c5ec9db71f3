"""Choosing the next token from logits, without ever asking the device for a value, so that a CUDA graph can hold it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import InputError

__all__ = ["Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the likeliest tokens that together reach this probability, of those that `top_k` leaves.

    Raises:
        InputError: an option out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature: expected a number from 0 on, was {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k: expected at least 1, was {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p: expected above 0 and at most 1, was {self.top_p}")

    def choose(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a token a row, `[B]` int64, for logits `[B, vocab]`.

        A sample is the winner of a race: of exponential clocks with rates `p_i`, clock i rings first with probability
        `p_i`. It needs no sum and no search, and draws as many numbers whatever the logits are.

        Args:
            generator: on the logits' device; None: torch's default one.
        """
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        scores, order = self._limit(logits.float() / self.temperature)
        rings = scores.new_empty(scores.shape).exponential_(generator=generator)  # in the same order for any layout
        winner = (scores - rings.log()).argmax(dim=-1, keepdim=True)
        return (winner if order is None else order.gather(-1, winner))[:, 0]

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
