"""What is added to the scores of power attention before they are raised to their power, one number a head."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from zoo.blocks.in_float32 import in_float32
from zoo.blocks.linear import own_part

__all__ = ["LEARNED_OFFSET", "LearnedOffset", "Offset"]

LEARNED_OFFSET = 1.0
"""Where learned offsets start: at weights `(1 + s)^p`, which grow with the score s as softmax's do."""


def _check_offset(offset: Any) -> Any:
    number = isinstance(offset, int | float) and not isinstance(offset, bool) and math.isfinite(offset)
    if not number and offset != "learned":
        raise ValueError(f"must be a number or 'learned', got {offset!r}")
    return offset


Offset = Annotated[float | Literal["learned"], BeforeValidator(_check_offset)]
"""A number for all heads, or `learned`, one parameter a head."""


class LearnedOffset(nn.Module):
    """One offset a query head, from 1 on: `[Hq]`.

    Args:
        heads: query heads.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(heads))
        self.initialize(std=0.02)

    def forward(self) -> Tensor:
        return own_part(self.value)

    @in_float32
    def initialize(self, std: float) -> None:
        """Start anew; nothing is drawn, whatever the deviation of the model's weights."""
        nn.init.constant_(self.value, LEARNED_OFFSET)
