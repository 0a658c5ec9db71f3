"""The head rule: how query, key and value heads share states.

There are `Hs = max(Hk, Hv)` states and `Ho = max(Hq, Hs)` outputs. Each count divides the one it is shared by, and
heads are shared in consecutive groups: state `h` reads key head `h // (Hs / Hk)`, and output `i` reads state
`i // (Ho / Hs)`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Heads", "gather_heads", "separate_gradients", "spread_heads"]


class Heads(NamedTuple):
    """Head counts of one call."""

    query: int
    key: int
    value: int

    @property
    def state(self) -> int:
        return max(self.key, self.value)

    @property
    def output(self) -> int:
        return max(self.query, self.state)

    @property
    def queries_per_state(self) -> int:
        return self.output // self.state


def spread_heads(x: Tensor, heads: int, dim: int) -> Tensor:
    """Repeat each head of `x` so that dimension `dim` has `heads` heads; a view or `x` itself where nothing repeats."""
    shared = x.shape[dim]
    if shared == heads:
        return x
    repeated = x.unsqueeze(dim + 1).expand(*x.shape[: dim + 1], heads // shared, *x.shape[dim + 1 :])
    return repeated.flatten(dim, dim + 1)


def separate_gradients(x: Tensor, heads: int) -> Tensor:
    """Memory for gradients of `x [B, T, H, W]` by so many heads, float32 if `gather_heads` is to sum some."""
    return x.new_empty(*x.shape[:2], heads, x.shape[3], dtype=x.dtype if x.shape[2] == heads else torch.float32)


def gather_heads(x: Tensor, heads: int, dim: int) -> Tensor:
    """Sum groups of heads of `x` so that dimension `dim` has `heads` heads: the gradient of `spread_heads`."""
    if x.shape[dim] == heads:
        return x
    return x.unflatten(dim, (heads, -1)).sum(dim + 1)
