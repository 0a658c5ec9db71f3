"""Gradients of values and of scores, from those of the states after chunks."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand
from zoo.kernels.rwkv7.triton.decays import boundary_decays, forgotten, load_rows
from zoo.kernels.rwkv7.triton.scores import seen_pairs

__all__ = ["value_gradient_kernel"]


@triton.jit(do_not_specialize=["T"])
def value_gradient_kernel(
    k, log_w, v, sums, do, dheld, removed, scores, dstates, dv, dscores, T, HEADS,
    C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr, LOWEST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dv `B_k^T do + A_k^T dheld + k' dS_end`, and dscores `[slots, H, 4, C, C]`, of A_b, A_k, B_b and B_k.

    From do, dheld, the gradient of what kappa meets, and removed u, of the shape of dv; the rest is as in
    `maps_kernel`. A program takes one chunk and head, BLOCK values at a time.
    """
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, do, False)
    place, stride, first = slot * HEADS + head, HEADS * K, (start * HEADS + head) * K
    dtype: tl.constexpr = dstates.dtype.element_ty
    at, channels = tl.arange(0, C), tl.arange(0, K)
    here = (at < tokens)[:, None]
    square = at[:, None] * C + at[None, :]
    counts = forgotten(log_w + first, at, tokens, stride, LOWEST, FIRST > 0)
    _, _, to_end, _ = boundary_decays(sums + first, at, (stride, tokens, channels), counts, FIRST > 0)
    key = as_operand(load_rows(k + first, at, tokens, stride, K) * to_end, dtype, PRECISION)
    scores += place * 3 * C * C + square
    kk, rk = tl.trans(tl.load(scores)), tl.trans(tl.load(scores + 2 * C * C))
    zeros = tl.zeros((C, C), tl.float32)
    dkb, dkk, drb, drk = zeros, zeros, zeros, zeros
    for block in range(K // BLOCK):  # not unrolled, which spares registers
        values = block * BLOCK + tl.arange(0, BLOCK)
        of_token = first + at[:, None] * stride + values[None, :]
        dy, dmet = tl.load(do + of_token, here, 0).to(dtype), tl.load(dheld + of_token, here, 0)
        dS = tl.load(dstates + place * K * K + channels[:, None] * K + values[None, :])
        gradient = tl.dot(key, dS, input_precision=PRECISION)
        gradient = tl.dot(rk, dy, gradient, input_precision=PRECISION)
        gradient = tl.dot(kk, dmet, gradient, input_precision=PRECISION)
        tl.store(dv + of_token, gradient.to(dv.dtype.element_ty), here)
        u = tl.trans(tl.load(removed + of_token, here, 0))
        dkb = tl.dot(dmet, u, dkb, input_precision=PRECISION)
        drb = tl.dot(dy, u, drb, input_precision=PRECISION)
        value = tl.trans(tl.load(v + of_token, here, 0).to(dtype))
        dkk = tl.dot(dmet, value, dkk, input_precision=PRECISION)
        drk = tl.dot(dy, value, drk, input_precision=PRECISION)
    seen, strict = seen_pairs(counts[0], FIRST > 0)
    dscores += place * 4 * C * C + square
    tl.store(dscores, as_operand(tl.where(strict, dkb, 0.0), dtype, PRECISION))
    tl.store(dscores + C * C, as_operand(tl.where(strict, dkk, 0.0), dtype, PRECISION))
    tl.store(dscores + 2 * C * C, as_operand(tl.where(seen, drb, 0.0), dtype, PRECISION))
    tl.store(dscores + 3 * C * C, as_operand(tl.where(seen, drk, 0.0), dtype, PRECISION))
