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
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from zoo.kernels.cache_key import key_compiled_code_by_sources

__all__ = ["flex_interval_attention", "mask_tensors", "supports_flex"]

key_compiled_code_by_sources()

BLOCK = 128
"""Tokens of a block, of queries and of keys: FlexAttention's default."""

LEAST_WIDTH = 16

MOST_PROGRAMS = 256
"""Kinds of call outside of a compiled model that are compiled side by side."""

_LISTS = (
    "kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
    "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices",
)  # fmt: skip


def supports_flex(q: Tensor) -> bool:
    """Whether FlexAttention takes heads such as those of q `[B, T, Hq, K]`."""
    return q.is_cuda and q.dtype != torch.float64 and q.shape[-1] >= LEAST_WIDTH


def flex_interval_attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """`interval_attention` for heads that `supports_flex` takes; compiled also where the model is not."""
    if torch.compiler.is_compiling():
        return _attend(q, k, v, first, last)
    # More kinds of call than the compiler's usual eight: dtypes, gradients, one row or token or block, whole blocks.
    with torch._dynamo.config.patch(recompile_limit=MOST_PROGRAMS):
        return _compiled()(q, k, v, first.contiguous(), last.contiguous())


@cache
def _compiled() -> Callable[..., Tensor]:
    # Uncompiled, FlexAttention makes all pairs of tokens: rather an error than that.
    return torch.compile(_attend, fullgraph=True)


def _attend(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor) -> Tensor:
    # In whole blocks: the kernels have a path for ends of blocks that is another program, and was wrong at 129 tokens.
    tokens, rows = q.shape[1], first.shape[0]
    queries, keys = (-(-n // BLOCK) * BLOCK for n in (tokens, k.shape[1]))
    place = torch.arange(queries, device=q.device).clamp(max=tokens - 1)
    first, last = first[:, place].int(), last[:, place].int()
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, n - x.shape[1])) for x, n in ((q, queries), (k, keys), (v, keys)))

    first, last, *found = mask_tensors(first, last, keys // BLOCK)

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        at = (row if rows > 1 else 0, query)
        return (key >= first[at]) & (key <= last[at])

    lists = dict(zip(_LISTS, found, strict=True))
    mask = BlockMask((queries, keys), **lists, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=sees)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    # Always the one kernel: that for short queries splits the keys by rules of its own.
    o = flex_attention(
        q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1],
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
    )  # fmt: skip
    assert isinstance(o, Tensor)
    return o.transpose(1, 2)[:, :tokens]


@torch.library.custom_op("zoo::interval_mask_tensors", mutates_args=())
def mask_tensors(first: Tensor, last: Tensor, key_blocks: int) -> list[Tensor]:
    """What a block mask reads for queries that see keys `first` to `last`, `[B or 1, T]` int32, T in whole blocks.

    Copies of both, then eight lists. Of the blocks of keys that a block of queries meets in part: how many
    `[B or 1, 1, N]`, and which `[B or 1, 1, N, key_blocks]`; the same of those it sees whole; then both of the blocks
    of queries that a block of keys meets. An op of its own: FlexAttention's kernels read all of them by bare pointers,
    so these have to be whole tensors in memory. What the compiler knows how to compute, such as bounds that follow from
    places alone, it would write into the kernel, in words that are none there.
    """
    begin, end = first.unflatten(1, (-1, BLOCK)), last.unflatten(1, (-1, BLOCK))
    # Blocks of keys that some query of a block sees, and those that all of them see whole.
    met = _Span(begin[..., 0] // BLOCK, end[..., -1] // BLOCK)
    whole = _Span((begin[..., -1] + BLOCK - 1) // BLOCK, (end[..., 0] + 1) // BLOCK - 1)
    query_blocks = begin.shape[1]
    return [
        first.clone(memory_format=torch.contiguous_format),
        last.clone(memory_format=torch.contiguous_format),
        *_lists(met, whole, key_blocks),
        *_lists(met.transposed(key_blocks), whole.transposed(key_blocks), query_blocks),
    ]


@mask_tensors.register_fake
def _(first: Tensor, last: Tensor, key_blocks: int) -> list[Tensor]:
    rows, query_blocks = first.shape[0], first.shape[1] // BLOCK
    bounds = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (first, last)]
    return bounds + [
        first.new_empty(rows, 1, blocks, *others)
        for blocks, other in ((query_blocks, key_blocks), (key_blocks, query_blocks))
        for _ in ("in part", "whole")
        for others in ((), (other,))
    ]


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
