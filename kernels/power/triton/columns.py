"""Queries or keys with tokens side by side, in chunks: what the kernels read that take one channel of many tokens."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["columns_kernel"]


@triton.jit(do_not_specialize=["T"])
def columns_kernel(
    x, factors, plain, scaled, bounds, T, C, X_HEADS, REPEATS,
    K: tl.constexpr, BLOCK: tl.constexpr, PLAIN: tl.constexpr, SCALED: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """If PLAIN, plain `[slots, Hx, K, C]` of x `[B T, Hx, K]`, zero beyond a chunk's end.

    If SCALED, scaled `[slots, Hx REPEATS, K, C]`, times factors `[slots, Hx REPEATS, C]`.
    """
    token, slot, head = tl.program_id(0) * BLOCK, tl.program_id(1).to(tl.int64), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    at, channel = token + tl.arange(0, BLOCK), tl.arange(0, K)
    rows = x + start * X_HEADS * K + head * K + at[:, None] * X_HEADS * K + channel[None, :]
    tile = tl.trans(tl.load(rows, (at < tokens)[:, None], 0))
    places = channel[:, None] * C + at[None, :]
    inside = (at < C)[None, :]
    if PLAIN:
        tl.store(plain + (slot * X_HEADS + head) * K * C + places, tile.to(plain.dtype.element_ty), inside)
    if SCALED:
        for repeat in range(REPEATS):
            row = slot * X_HEADS * REPEATS + head * REPEATS + repeat
            factor = tl.load(factors + row * C + at, at < C, 0)
            product = tile.to(tl.float32) * factor[None, :]
            tl.store(scaled + row * K * C + places, as_operand(product, scaled.dtype.element_ty, PRECISION), inside)
