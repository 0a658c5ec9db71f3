"""Queries and keys with tokens side by side, in chunks: what the kernels read that take one channel of many tokens.

One launch takes both, since those of a short sequence cost the CPU more than the GPU.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["columns_kernel", "load_columns", "store_columns"]


@triton.jit
def load_columns(x, start, at, tokens, HEADS, head, K: tl.constexpr):
    """A block of tokens of one head of x `[B T, HEADS, K]` as `[K, block]`, zero beyond a chunk's end."""
    channel = tl.arange(0, K)
    rows = x + start * HEADS * K + head * K + at[:, None] * HEADS * K + channel[None, :]
    return tl.trans(tl.load(rows, (at < tokens)[:, None], 0))


@triton.jit
def store_columns(columns, tile, row, at, C, K: tl.constexpr):
    """Store a block `[K, block]` in a row of columns `[rows, K, C]`."""
    places = row * K * C + tl.arange(0, K)[:, None] * C + at[None, :]
    tl.store(columns + places, tile.to(columns.dtype.element_ty), (at < C)[None, :])


@triton.jit(do_not_specialize=["T", "K_HEADS", "Q_HEADS"])
def columns_kernel(
    k, q, left, keys, decayed, queries, bounds, T, C, K_HEADS, Q_HEADS, REPEATS,
    K: tl.constexpr, BLOCK: tl.constexpr, DECAYED: tl.constexpr, GATED: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """keys `[slots, Hk, K, C]` of k `[B T, Hk, K]`, and queries of q, of which there may be no heads; zero beyond a
    chunk's end.

    If DECAYED, decayed `[slots, Hk REPEATS, K, C]`, keys times left `[slots, Hk REPEATS, C]` if GATED.
    """
    token, slot, head = tl.program_id(0) * BLOCK, tl.program_id(1).to(tl.int64), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    at = token + tl.arange(0, BLOCK)
    if head < K_HEADS:
        tile = load_columns(k, start, at, tokens, K_HEADS, head, K)
        store_columns(keys, tile, slot * K_HEADS + head, at, C, K)
        if DECAYED:
            for repeat in range(REPEATS):
                row = (slot * K_HEADS + head) * REPEATS + repeat
                product = tile.to(tl.float32)
                if GATED:
                    product *= tl.load(left + row * C + at, at < C, 0)[None, :]
                store_columns(decayed, as_operand(product, decayed.dtype.element_ty, PRECISION), row, at, C, K)
    else:
        tile = load_columns(q, start, at, tokens, Q_HEADS, head - K_HEADS, K)
        store_columns(queries, tile, slot * Q_HEADS + head - K_HEADS, at, C, K)
