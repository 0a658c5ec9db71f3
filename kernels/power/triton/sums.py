"""What one chunk adds to the state at p = 2: `sum_t decay_t m(x_t) y_t^T` and `sum_t decay_t m(x_t) w_t`."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.monomials import outer_count
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["normaliser_sums_kernel", "state_sums_kernel"]


@triton.jit
def _add_outer(total, tile, y, decayed, channel, PRECISION: tl.constexpr):
    """Add what an outer channel gives `[K, V]`: decayed are pointers to tokens with decay, C a channel."""
    x, C = decayed
    tile = as_operand(tile * tl.load(x + channel * C)[None, :], tile.dtype, PRECISION)
    return tl.dot(tile, y, total, input_precision=PRECISION)


@triton.jit(do_not_specialize=["T", "X_HEADS", "Y_HEADS", "STATES"])
def state_sums_kernel(
    x_columns, x_decayed, y, sums, bounds, T, C, rows, X_HEADS, Y_HEADS, STATES, REPEATS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, OUTER: tl.constexpr, BLOCK: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S's part of `sums [slots, Hs, rows (V + 1)]`, from `x_columns [slots, Hx, K, C]`, the same with decay for each
    output `x_decayed [slots, Hs REPEATS, K, C]`, and y `[B T, Hy, V]`; of P = 2.

    A program takes OUTER outer channels. Where REPEATS outputs share a state, theirs add up.
    """
    group, slot, state = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    first, end = group * OUTER, outer_count(K, P)
    second, third, fourth = (
        tl.minimum(first + 1, end - 1),
        tl.minimum(first + 2, end - 1),
        tl.minimum(first + 3, end - 1),
    )
    offsets, channels, values = tl.arange(0, BLOCK), tl.arange(0, K), tl.arange(0, V)
    sum0 = tl.zeros((K, V), tl.float32)
    sum1 = tl.zeros((K, V), tl.float32)
    sum2 = tl.zeros((K, V), tl.float32)
    sum3 = tl.zeros((K, V), tl.float32)
    for repeat in range(REPEATS):
        head = state * REPEATS + repeat
        decayed = x_decayed + (slot * STATES * REPEATS + head) * K * C
        x = x_columns + (slot * X_HEADS + head * X_HEADS // (STATES * REPEATS)) * K * C
        y_head = y + start * Y_HEADS * V + head * Y_HEADS // (STATES * REPEATS) * V
        for token in range(0, tokens, BLOCK):
            at = token + offsets
            tile = tl.load(x + channels[:, None] * C + at[None, :])
            # Beyond the chunk's end decayed columns are zero.
            rows_of_y = tl.minimum(at, tokens - 1)[:, None] * Y_HEADS * V
            block = tl.load(y_head + rows_of_y + values[None, :]).to(tile.dtype)
            outer = (decayed + at, C)
            sum0 = _add_outer(sum0, tile, block, outer, first, PRECISION)
            if OUTER > 1:
                sum1 = _add_outer(sum1, tile, block, outer, second, PRECISION)
            if OUTER > 2:
                sum2 = _add_outer(sum2, tile, block, outer, third, PRECISION)
                sum3 = _add_outer(sum3, tile, block, outer, fourth, PRECISION)
    out = sums + (slot * STATES + state) * rows * (V + 1) + (first * K + channels[:, None]) * V + values[None, :]
    tl.store(out, sum0.to(sums.dtype.element_ty))
    if OUTER > 1:
        tl.store(out + K * V, sum1.to(sums.dtype.element_ty), mask=first + 1 < end)
    if OUTER > 2:
        tl.store(out + 2 * K * V, sum2.to(sums.dtype.element_ty), mask=first + 2 < end)
        tl.store(out + 3 * K * V, sum3.to(sums.dtype.element_ty), mask=first + 3 < end)


@triton.jit(do_not_specialize=["T", "X_HEADS", "STATES"])
def normaliser_sums_kernel(
    x_columns, x_decayed, delta, sums, bounds, T, C, outers, rows, X_HEADS, STATES, REPEATS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, OUTERS: tl.constexpr, BLOCK: tl.constexpr,
    HAS_DELTA: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z's part of `sums`, which stands behind S's; times -delta `[slots, Hs REPEATS, C]` if HAS_DELTA; of P = 2.

    A program takes OUTERS outer monomials: one product of them with all channels, of which is stored what the layout's
    inner blocks hold.
    """
    group, slot, state = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    _, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    offsets, all_channels = tl.arange(0, BLOCK), tl.arange(0, K)
    outer = group * OUTERS + tl.arange(0, OUTERS)
    result = tl.zeros((OUTERS, K), tl.float32)
    for repeat in range(REPEATS):
        head = state * REPEATS + repeat
        decayed = x_decayed + (slot * STATES * REPEATS + head) * K * C
        x = x_columns + (slot * X_HEADS + head * X_HEADS // (STATES * REPEATS)) * K * C
        for token in range(0, tokens, BLOCK):
            at = token + offsets
            tile = tl.load(decayed + all_channels[None, :] * C + at[:, None])
            mask = (outer < outers)[:, None] & (at < tokens)[None, :]
            scaled = tl.load(x + at[None, :] + outer[:, None] * C, mask, 0).to(tl.float32)
            if HAS_DELTA:
                scaled *= -tl.load(delta + (slot * STATES * REPEATS + head) * C + at)[None, :]
            scaled = as_operand(scaled, tile.dtype, PRECISION)
            result = tl.dot(scaled, tile, result, input_precision=PRECISION)
    block = all_channels // INNER
    base, prefix = block * 0, block * 0 + outer_count(INNER, P)  # of each channel's block
    for earlier in tl.static_range(K // INNER - 1):
        base += tl.where(block > earlier, outer_count((earlier + 1) * INNER, P) * INNER, 0)
        prefix = tl.where(block > earlier, outer_count((earlier + 2) * INNER, P), prefix)
    out = sums + (slot * STATES + state) * rows * (V + 1) + rows * V
    at_row = base[None, :] + outer[:, None] * INNER + all_channels[None, :] % INNER
    tl.store(out + at_row, result.to(sums.dtype.element_ty), mask=outer[:, None] < prefix[None, :])
