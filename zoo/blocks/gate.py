"""The gate that decides how much of its past a head keeps at each token."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import AfterValidator
from torch import Tensor, nn

from zoo.blocks.in_float32 import in_float32
from zoo.blocks.linear import own_part
from zoo.config import Pair

__all__ = ["Retention", "RetentionGate", "with_resets"]


def _check_retention(retention: tuple[float, float]) -> tuple[float, float]:
    low, high = retention
    if not 0 < low <= high < 1:
        raise ValueError(f"must be two numbers in order, above 0 and below 1, got {list(retention)}")
    return retention


Retention = Annotated[Pair, AfterValidator(_check_retention)]
"""Share of its past that the most forgetful and the most retentive head keep at each token, before training."""


class RetentionGate(nn.Module):
    """`log_g = log sigmoid(W x + b)` per head, float32 (float64 for a float64 model): `x [..., M]` to `[..., H]`.

    It is no `nn.Linear`, since what it gives is not linear: an adapter that adds to the output of every linear layer
    would make log gates positive, and what quantises them all would lose the digits of the bias.

    The bias starts such that the shares forgotten, `1 - g`, are spread over the heads evenly in their logarithm: from
    the first step on some heads remember long contexts and some follow the last few tokens.

    Args:
        width: of the input, M.
        heads: gates, H.
        retention: lowest and highest g at the start.
    """

    def __init__(self, width: int, heads: int, retention: tuple[float, float]) -> None:
        super().__init__()
        self.retention = retention
        self.weight = nn.Parameter(torch.empty(heads, width))
        self.bias = nn.Parameter(torch.empty(heads))
        self.initialize(std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 2:
            return self._log_gates(F.linear(x, own_part(self.weight)))
        # One token of each row: as sums, which the compiler turns into one kernel; a matrix product for so few numbers
        # takes several times as long on a GPU.
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self._log_gates((x[..., None, :].to(dtype) * own_part(self.weight).to(dtype)).sum(-1))

    def _log_gates(self, logits: Tensor) -> Tensor:
        # The bias joins in float32: near 9, where a retention of 0.9999 stands, bfloat16 steps by 6%.
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return F.logsigmoid(logits.to(dtype) + own_part(self.bias).to(dtype))

    @in_float32
    def initialize(self, std: float) -> None:
        """Draw the weight from N(0, std) and spread the bias."""
        low, high = self.retention
        nn.init.normal_(self.weight, std=std)
        log_forgotten = torch.linspace(
            math.log1p(-low), math.log1p(-high), len(self.bias), device=self.bias.device, dtype=torch.float32
        )
        with torch.no_grad():
            self.bias.copy_(torch.log1p(-log_forgotten.exp()) - log_forgotten)


def with_resets(log_g: Tensor | None, resets: Tensor | None, heads: int) -> Tensor | None:
    """Return log gates `[B, T, H]` that also forget everything before each token marked in `resets [B, T]`.

    None stands for no gates, and for no resets.
    """
    if resets is None:
        return log_g
    kept = torch.zeros((), device=resets.device, dtype=torch.float32) if log_g is None else log_g
    return torch.where(resets[..., None], -math.inf, kept).expand(-1, -1, heads)
