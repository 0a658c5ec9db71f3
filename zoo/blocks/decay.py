"""Gates whose log decays are steps of a size that the token sets, as in Mamba-2 and in gated delta rules."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import AfterValidator
from torch import Tensor, nn

from zoo.blocks.in_float32 import in_float32
from zoo.blocks.linear import own_part
from zoo.config import Pair

__all__ = ["PositiveRange", "Range", "StepGate", "draw_decays", "draw_steps"]

_LEAST_STEP = 1e-4
_LARGEST = 1e6  # of decays and steps; beyond it nothing is left of any token


def _in_order(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= limits[0] <= limits[1] <= _LARGEST:
        raise ValueError(f"must be two numbers in order, from 0 to {_LARGEST:g}, was {list(limits)}")
    return limits


def _positive(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] <= 0:
        raise ValueError(f"must be two numbers above 0, was {list(limits)}")
    return limits


Range = Annotated[Pair, AfterValidator(_in_order)]
"""Two numbers in order, from 0 on."""

PositiveRange = Annotated[Range, AfterValidator(_positive)]
"""Two numbers in order, above 0."""


class StepGate(nn.Module):
    """`log_g = -A softplus(logits + b)`, at least float32, with an A > 0 a head: its sums need the digits.

    Args:
        heads: of gates, H.
        channels: gates of a head, K, each with a b of its own; None: one.
        decay: range of A at the start, from which it is drawn evenly.
        step: range of `softplus(b)` at the start, drawn evenly in its logarithm.
    """

    def __init__(
        self, heads: int, channels: int | None, decay: tuple[float, float], step: tuple[float, float] = (1e-3, 0.1)
    ) -> None:
        super().__init__()
        self.channels, self.decay, self.step = channels, decay, step
        self.log_decay = nn.Parameter(torch.empty(heads))  # log A
        self.step_bias = nn.Parameter(torch.empty((heads,) if channels is None else (heads, channels)))
        self.initialize(std=0.02)

    @in_float32
    def initialize(self, std: float) -> None:
        """Draw decays and step sizes from their ranges, whatever `std` other weights have."""
        draw_decays(self.log_decay, *self.decay)
        draw_steps(self.step_bias, *self.step)

    def forward(self, logits: Tensor) -> Tensor:
        """Log gates `[..., H]` of logits `[..., H]`, or `[..., H, K]` of `[..., H K]`."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        decay, bias = own_part(self.log_decay).to(dtype).exp(), own_part(self.step_bias).to(dtype)
        if self.channels is not None:
            # Spread, so that its gradient is summed over tokens first: how the compiler sums over tokens and channels
            # at once depends on how many tokens there are, sooner than all else does.
            logits, decay = logits.unflatten(-1, (-1, self.channels)), decay[:, None].expand(-1, self.channels)
        return -decay * F.softplus(logits.to(dtype) + bias)


def draw_decays(log_decay: Tensor, low: float, high: float) -> None:
    """Draw `exp(log_decay)` evenly from a range, in place."""
    nn.init.uniform_(log_decay, low, high)
    with torch.no_grad():
        log_decay.log_()


def draw_steps(bias: Tensor, low: float, high: float) -> None:
    """Draw `softplus(bias)` from a range, evenly in its logarithm, in place."""
    nn.init.uniform_(bias, math.log(low), math.log(high))
    with torch.no_grad():
        steps = bias.exp().clamp_(min=_LEAST_STEP)
        bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus
