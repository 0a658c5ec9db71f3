"""What one chunk adds to the state at p = 1: `sum_t x_t (weight_t y_t)^T` and `sum_t weight_t x_t`.

Decay meets y: x is then the same for all heads that share it, and none of its copies with a head's decay is written and
read, which for 24 heads of 64 with one key of 128 channels would be four times what y and the sums themselves are.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["linear_sums_kernel"]


@triton.jit(do_not_specialize=["T", "X_HEADS", "Y_HEADS", "STATES"])
def linear_sums_kernel(
    x, y, weights, delta, sums, bounds, T, C, rows, X_HEADS, Y_HEADS, STATES, REPEATS,
    K: tl.constexpr, V: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, WEIGHTED: tl.constexpr,
    HAS_NORMALISER: tl.constexpr, HAS_DELTA: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The first K rows of `sums [slots, Hs, rows (V + 1)]`, from x `[B T, Hx, K]`, y `[B T, Hy, V]` and weights
    `[slots, Hs REPEATS, C]`, 1 if not WEIGHTED; z's too if HAS_NORMALISER, times -delta `[slots, Hs REPEATS, C]` if
    HAS_DELTA.

    A program takes HEADS states, whose x is the same; more than one only if each has a y of its own, and without a
    normaliser. Where REPEATS outputs share a state, theirs add up.
    """
    state, slot = tl.program_id(0) * HEADS, tl.program_id(1).to(tl.int64)
    tl.static_assert(HEADS == 1 or not HAS_NORMALISER)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    outputs = STATES * REPEATS
    dtype: tl.constexpr = tl.bfloat16 if x.dtype.element_ty == tl.bfloat16 else tl.float32
    offsets, channel, head = tl.arange(0, BLOCK), tl.arange(0, K), tl.arange(0, HEADS)
    column = tl.arange(0, HEADS * V)  # of values, one head's behind another's
    result, normaliser = tl.zeros((K, HEADS * V), tl.float32), tl.zeros((K,), tl.float32)
    for repeat in range(REPEATS):
        output = state * REPEATS + repeat
        x_head = x + (start * X_HEADS + output * X_HEADS // outputs) * K
        y_head = y + (start * Y_HEADS + output * Y_HEADS // outputs) * V
        row = (slot * outputs + output) * C
        for token in range(0, tokens, BLOCK):
            at = token + offsets
            exists, places = at < tokens, tl.minimum(at, tokens - 1)
            tile = tl.load(x_head + places[:, None] * X_HEADS * K + channel[None, :])
            block = tl.load(y_head + places[:, None] * Y_HEADS * V + column[None, :]).to(tl.float32)
            weight = tl.where(exists[:, None], head[None, :] * 0 + 1.0, 0.0)
            if WEIGHTED:
                weight *= tl.load(weights + row + head[None, :] * C + at[:, None], exists[:, None], 0)
            block = tl.reshape(tl.reshape(block, (BLOCK, HEADS, V)) * weight[:, :, None], (BLOCK, HEADS * V))
            block = as_operand(block, dtype, PRECISION)
            result = tl.dot(tl.trans(tile.to(dtype)), block, result, input_precision=PRECISION)
            if HAS_NORMALISER:
                if HAS_DELTA:
                    weight *= -tl.load(delta + row + at, exists, 0)[:, None]
                normaliser += tl.sum(tile.to(tl.float32) * weight, 0)
    size = rows * (V + 1)
    sums += (slot * STATES + state) * size
    places = column // V * size + column % V
    tl.store(sums + channel[:, None] * V + places[None, :], result.to(sums.dtype.element_ty))
    if HAS_NORMALISER:
        tl.store(sums + rows * V + channel, normaliser.to(sums.dtype.element_ty))
