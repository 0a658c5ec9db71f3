"""What one chunk adds to the constant channel's rows of a state, which an offset gives it."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.decay import small_power
from zoo.kernels.power.triton.monomials import CONSTANT_ROWS, power

__all__ = ["lower_sums_kernel"]


@triton.jit(do_not_specialize=["T", "Q_HEADS", "Y_HEADS", "STATES"])
def lower_sums_kernel(
    x_decayed, y, weights, gates, gates_low, delta, offset, sums, bounds, T, C, rows, Q_HEADS, Y_HEADS, STATES,
    REPEATS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr, OF_QUERIES: tl.constexpr,
    WEIGHTED: tl.constexpr, GATED: tl.constexpr, EXACT_GATES: tl.constexpr, HAS_NORMALISER: tl.constexpr,
    HAS_DELTA: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The last rows of `sums [slots, Hs, rows (V + 1)]`, at P = 2 those of x_decayed `[slots, Hs REPEATS, K, C]`, and
    the constant's and its zeros, with y `[B T, Hy, V]`; z's too if HAS_NORMALISER, times -delta
    `[slots, Hs REPEATS, C]` if HAS_DELTA.

    The constant is 1 times weights `[slots, Hs REPEATS, C]` if WEIGHTED. OF_QUERIES it is the offset `[Hq]`, with gates
    `[slots, Hs, C]` as decay from the chunk's start if GATED, and rows are P, times the offset, those of x.
    """
    slot, state = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    channel, value = tl.arange(0, K), tl.arange(0, V)
    linear, linear_normaliser = tl.zeros((K, V), tl.float32), tl.zeros((K,), tl.float32)
    constant, constant_normaliser = tl.zeros((V,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for repeat in range(REPEATS):
        head = state * REPEATS + repeat
        row = slot * STATES * REPEATS + head
        y_head = y + start * Y_HEADS * V + head * Y_HEADS // (STATES * REPEATS) * V
        outer, square = 1.0, 1.0
        if OF_QUERIES:
            beta = tl.load(offset + head * Q_HEADS // (STATES * REPEATS))
            outer, square = P * beta, power(beta, P)
        part, part_normaliser = tl.zeros((K, V), tl.float32), tl.zeros((K,), tl.float32)
        for token in range(0, tokens, BLOCK):
            at = token + tl.arange(0, BLOCK)
            exists = at < tokens
            block = tl.load(y_head + tl.minimum(at, tokens - 1)[:, None] * Y_HEADS * V + value[None, :])
            weight = tl.where(exists, square, 0.0)
            if WEIGHTED:
                weight *= tl.load(weights + row * C + at, exists, 0)
            if GATED:
                weight *= tl.exp2(tl.load(gates + (slot * STATES + state) * C + at, exists, 0))
                if EXACT_GATES:
                    weight *= small_power(tl.load(gates_low + (slot * STATES + state) * C + at, exists, 0))
            constant += tl.sum(block.to(tl.float32) * weight[:, None], 0)
            normaliser = tl.where(exists, 1.0, 0.0)
            if HAS_DELTA:
                normaliser = -tl.load(delta + row * C + at, exists, 0)
            constant_normaliser += weight * normaliser
            if P == 2:
                # Beyond the chunk's end decayed columns are zero.
                tile = tl.load(x_decayed + row * K * C + channel[:, None] * C + at[None, :])
                part = tl.dot(tile, block.to(tile.dtype), part, input_precision=PRECISION)
                part_normaliser += tl.sum(tile.to(tl.float32) * normaliser[None, :], 1)
        linear += outer * part
        linear_normaliser += outer * part_normaliser
    out = sums + (slot * STATES + state) * rows * (V + 1)
    z = out + rows * V
    row = tl.arange(0, CONSTANT_ROWS)
    last = rows - CONSTANT_ROWS
    block = tl.where((row == 0)[:, None], constant[None, :], 0.0)
    tl.store(out + (last + row)[:, None] * V + value[None, :], block.to(sums.dtype.element_ty))
    if HAS_NORMALISER:
        column = tl.where(row == 0, tl.sum(constant_normaliser, 0), 0.0)
        tl.store(z + last + row, column.to(sums.dtype.element_ty))
    if P == 2:
        places = (last - K) * V + channel[:, None] * V + value[None, :]
        tl.store(out + places, linear.to(sums.dtype.element_ty))
        if HAS_NORMALISER:
            tl.store(z + last - K + channel, linear_normaliser.to(sums.dtype.element_ty))
