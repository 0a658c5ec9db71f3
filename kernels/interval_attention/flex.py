"""On a GPU: PyTorch's FlexAttention, with a block mask made from the intervals.

The blocks of keys that a block of queries meets are an interval too, and so are those that all its queries see whole.
So the mask is a few numbers a block, made without a look at pairs of tokens, without sorting, and without asking the
GPU how many documents there are.

Source: Dong et al., "Flex Attention: A Programming Model for Generating Optimized Attention Kernels", arXiv 2412.05496.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

__all__ = ["flex_interval_attention", "interval_block_mask", "supports_flex"]

BLOCK = 128
"""Tokens of a block, of queries and of keys: FlexAttention's default."""

LEAST_WIDTH = 16


def supports_flex(q: Tensor) -> bool:
    """Whether FlexAttention takes heads such as those of q `[B, T, Hq, K]`."""
    return q.is_cuda and q.dtype != torch.float64 and q.shape[-1] >= LEAST_WIDTH


def flex_interval_attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """`interval_attention` for heads that `supports_flex` takes; compiled also where the model is not."""
    attend = _attend if torch.compiler.is_compiling() else _compiled()
    return attend(q, k, v, first, last)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_attend)  # uncompiled, FlexAttention makes all pairs of tokens


def _attend(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor) -> Tensor:
    mask = interval_block_mask(first, last, k.shape[1])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return flex_attention(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def interval_block_mask(first: Tensor, last: Tensor, keys: int) -> BlockMask:
    """The block mask of queries that see keys `first` to `last`, both `[B or 1, T]` and never falling, of `keys`."""
    rows, tokens = first.shape
    first, last = first.int(), last.int()
    begins = torch.arange(0, tokens, BLOCK, device=first.device)
    ends = (begins + BLOCK - 1).clamp(max=tokens - 1)
    # Blocks of keys that some query of a block sees, and those that all of them see whole.
    met = _Span(first[:, begins] // BLOCK, last[:, ends] // BLOCK)
    whole = _Span(-(-first[:, ends] // BLOCK), (last[:, begins] + 1) // BLOCK - 1)
    key_blocks = -(-keys // BLOCK)
    by_query, by_key = (
        _lists(met, whole, key_blocks),
        _lists(met.transposed(key_blocks), whole.transposed(key_blocks), begins.shape[0]),
    )

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        at = (row if rows > 1 else 0, query)
        return (key >= first[at]) & (key <= last[at])

    return BlockMask((tokens, keys), *by_query, *by_key, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=sees)


class _Span(NamedTuple):
    """From `low` to `high`, both included, `[B or 1, blocks]`, neither ever falling; none where low is beyond high."""

    low: Tensor
    high: Tensor

    def transposed(self, blocks: int) -> "_Span":
        """The blocks in whose span each of `blocks` others is: again from one to another, as neither bound falls."""
        other = torch.arange(blocks, device=self.low.device)
        below = (self.high[..., None] < other).sum(1, dtype=torch.int32)
        reached = (self.low[..., None] <= other).sum(1, dtype=torch.int32)
        return _Span(below, reached - 1)


def _lists(met: _Span, whole: _Span, blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How many of `blocks` others each block meets in part `[B or 1, 1, N]`, which `[B or 1, 1, N, blocks]`, and the
    same for those it meets whole.
    """
    place = torch.arange(blocks, device=met.low.device)
    wholes = (whole.high - whole.low + 1).clamp(min=0)
    parts = (met.high - met.low + 1).clamp(min=0) - wholes
    # In part: those before the whole ones, then those behind them.
    before = torch.where(wholes > 0, whole.low - met.low, parts)[..., None]
    skipped = torch.where(place < before, 0, wholes[..., None])
    part = (met.low[..., None] + place + skipped).clamp(0, blocks - 1)
    full = (whole.low[..., None] + place).clamp(0, blocks - 1)
    return parts[:, None].int(), part[:, None].int(), wholes[:, None].int(), full[:, None].int()
