"""Two thin matrices in place of a square one."""

import math
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from zoo.blocks.in_float32 import in_float32
from zoo.blocks.treatment import STEADY

__all__ = ["LowRank", "low_rank"]


def low_rank(width: int, share: float) -> int:
    """RWKV-7's rank for a model's width: `share sqrt(M)` to the next multiple of 32, and at least that."""
    return max(32, 32 * round(share * math.sqrt(width) / 32))


class LowRank(nn.Module):
    """`b + f(x W_1) W_2` with inner width `rank`; the first matrix starts at zero, the second orthogonal.

    Neither decays, as in RWKV-7.

    Args:
        width: of input and output.
        rank: of the product.
        between: f; None: nothing.
        bias: whether there is a b, which is its owner's to start.
    """

    treatments: ClassVar = {"contract.weight": STEADY, "expand.weight": STEADY}

    def __init__(self, width: int, rank: int, between: Callable[[Tensor], Tensor] | None, *, bias: bool) -> None:
        super().__init__()
        self.between = between
        self.contract = nn.Linear(width, rank, bias=False)
        self.expand = nn.Linear(rank, width, bias=bias)
        self.initialize(std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.contract(x)
        return self.expand(inner if self.between is None else self.between(inner))

    @in_float32
    def initialize(self, std: float) -> None:
        """Start as published, whatever `std` other weights have."""
        nn.init.zeros_(self.contract.weight)
        rank, width = self.expand.in_features, self.expand.out_features
        nn.init.orthogonal_(self.expand.weight, gain=0.1 * math.sqrt(max(1.0, rank / width)))
