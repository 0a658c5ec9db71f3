"""What power attention makes of a model's scores before it raises them to its power: `offset + scale s`, by head."""

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.blocks.in_float32 import in_float32
from zoo.blocks.offset import LearnedOffset, Offset

__all__ = ["LearnedScale", "PowerScores", "scale_at_start"]


def scale_at_start(p: int, offset: Offset) -> float:
    """Return the factor on scores at which weights come nearest to softmax's.

    With an offset weights are `(1 + s / p)^p`, which come near `exp(s)` as p grows. Without one no factor changes what
    is divided by the sum of weights.
    """
    return 1.0 if offset == 0 else 1.0 / p


class LearnedScale(nn.Module):
    """One factor a query head: `[Hq]`.

    Args:
        heads: query heads.
        start: what it is before training.
    """

    def __init__(self, heads: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.value = nn.Parameter(torch.empty(heads))
        self.initialize(std=0.02)

    def forward(self) -> Tensor:
        return self.value

    @in_float32
    def initialize(self, std: float) -> None:
        """Start anew; nothing is drawn."""
        nn.init.constant_(self.value, self.start)


class PowerScores(nn.Module):
    """The offset and the factor of each query head, each a number or learned.

    Args:
        heads: query heads.
        p: the power that scores are raised to.
        offset: a number, or `learned`, from 1 on.
        scale: a number, or `learned`, from `scale_at_start` on.
    """

    def __init__(self, heads: int, p: int, offset: Offset, scale: float | Literal["learned"]) -> None:
        super().__init__()
        self.offset: LearnedOffset | float = LearnedOffset(heads) if offset == "learned" else float(offset)
        start = scale_at_start(p, offset)
        self.scale: LearnedScale | float = LearnedScale(heads, start) if scale == "learned" else float(scale)

    def forward(self, q: Tensor) -> tuple[Tensor, float | Tensor]:
        """Return queries `[B, T, Hq, K]` times their head's factor, and the offset: a number, or `[Hq]`."""
        offset = self.offset() if isinstance(self.offset, LearnedOffset) else self.offset
        if isinstance(self.scale, LearnedScale):
            return q * self.scale().to(q.dtype)[:, None], offset
        return q if self.scale == 1 else q * self.scale, offset

    def initialize(self, std: float) -> None:
        """Start anew."""
        for part in (self.offset, self.scale):
            if isinstance(part, LearnedOffset | LearnedScale):
                part.initialize(std)
