"""What tokens of a chunk read of one another, and the system that what is removed follows from."""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.prepare import inverse_below
from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand
from zoo.kernels.rwkv7.triton.decays import forgotten, load_rows
from zoo.kernels.rwkv7.triton.pairs import add_pair_scores

__all__ = ["scores_kernel", "seen_pairs"]


@triton.jit
def seen_pairs(counts, BOUNDED: tl.constexpr):
    """Which writers r sees, and which kappa `[C, C]`; counts are how often all was forgotten `[C]`."""
    at = tl.arange(0, counts.shape[0])
    seen = at[:, None] >= at[None, :]
    if BOUNDED:
        seen &= counts[:, None] == counts[None, :]
    return seen, seen & (at[:, None] > at[None, :])


@triton.jit(do_not_specialize=["T"])
def scores_kernel(
    r, log_w, k, kappa, a, sums, inverses, scores, T, HEADS,
    C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr,
    LOWEST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """inverses `(1 - A_b)^-1 [slots, H, C, C]`, and scores A_k, B_b and B_k `[slots, H, 3, C, C]`.

    A are the scores of kappa, B those of r, with what is removed, b, and with what is added, k. From r, log_w, k,
    kappa, a and sums of log decays `[B T, H, K]`. A program takes one chunk and head, BLOCK channels at a time; FIRST
    is as in `pairs.py`, and decays are bounded if it is not 0.
    """
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, sums, False)
    place, stride, first = slot * HEADS + head, HEADS * K, (start * HEADS + head) * K
    dtype: tl.constexpr = scores.dtype.element_ty
    at = tl.arange(0, C)
    zeros = tl.zeros((C, C), tl.float32)
    kb, kk, rb, rk = zeros, zeros, zeros, zeros
    for block in range(K // BLOCK):  # not unrolled, which spares registers
        here = first + block * BLOCK
        removal = load_rows(kappa + here, at, tokens, stride, BLOCK)
        b = -removal.to(tl.float32) * load_rows(a + here, at, tokens, stride, BLOCK)
        reader, key = load_rows(r + here, at, tokens, stride, BLOCK), load_rows(k + here, at, tokens, stride, BLOCK)
        kb, kk, rb, rk = add_pair_scores(
            (kb, kk, rb, rk), (removal, reader, b, key), (sums + here, stride, tokens), FIRST, LEVELS, dtype, PRECISION
        )
    counts, _ = forgotten(log_w + first, at, tokens, stride, LOWEST, FIRST > 0)
    seen, strict = seen_pairs(counts, FIRST > 0)
    square = at[:, None] * C + at[None, :]
    scores += place * 3 * C * C + square
    tl.store(scores, as_operand(tl.where(strict, kk, 0.0), dtype, PRECISION))
    tl.store(scores + C * C, as_operand(tl.where(seen, rb, 0.0), dtype, PRECISION))
    tl.store(scores + 2 * C * C, as_operand(tl.where(seen, rk, 0.0), dtype, PRECISION))
    system = tl.where(strict, -kb, 0.0)
    inverse = inverse_below(system, LEVELS, system.dtype, PRECISION)
    tl.store(
        inverses + place * C * C + square, as_operand(inverse, tl.float32, PRECISION).to(inverses.dtype.element_ty)
    )
