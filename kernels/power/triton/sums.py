"""What one chunk adds to the state: `sum_t decay_t m(x_t) y_t^T` and `sum_t decay_t m(x_t) w_t`."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.monomials import outer_columns, pair_rows
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["normaliser_sums_kernel", "outer_with_decay", "state_sums_kernel"]


@triton.jit
def _add_outer(total, tile, y, columns, outer, P: tl.constexpr, PRECISION: tl.constexpr):
    """Add one outer monomial's tile `[INNER, V]`.

    columns: pointers to a block's vectors side by side `[K, C]` and to the same with decay, the tokens `at [BLOCK]`, C,
    and the table of outer monomials' channels with `outers` in a row. A plain tuple: see `from_state`.
    """
    if P > 1:
        tile = as_operand(tile * outer_with_decay(columns, outer, P)[None, :], tile.dtype, PRECISION)
    return tl.dot(tile, y, total, input_precision=PRECISION)


@triton.jit
def outer_with_decay(columns, outer, P: tl.constexpr):
    """An outer monomial of a block's vectors, one channel of which is read where decay has been applied."""
    x, decayed, at, C, channels, outers = columns
    channel = outer if P == 2 else tl.load(channels + outer)
    scalars = tl.load(decayed + channel * C + at)
    if P > 2:
        wide = scalars.to(tl.float32)
        for degree in tl.static_range(1, P - 1):
            wide *= tl.load(x + tl.load(channels + degree * outers + outer) * C + at).to(tl.float32)
        scalars = wide.to(scalars.dtype)
    return scalars


@triton.jit(do_not_specialize=["T", "X_HEADS", "Y_HEADS", "STATES"])
def state_sums_kernel(
    x_columns, x_decayed, y, sums, bounds, channels, T, C, outers, rows, base, inner, end,
    X_HEADS, Y_HEADS, STATES, REPEATS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, OUTER: tl.constexpr, BLOCK: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S's part of `sums [slots, Hs, rows (V + 1)]`, from `x_columns [slots, Hx, K, C]`, the same with decay for each
    output `x_decayed [slots, Hs REPEATS, K, C]`, and y `[B T, Hy, V]`.

    For one inner block, whose rows start at base and whose outer monomials end at `end`; a program takes OUTER of them.
    Where REPEATS outputs share a state, theirs add up.
    """
    group, slot, state = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    first = group * OUTER
    row = base + first * INNER
    second, third, fourth = (
        tl.minimum(first + 1, end - 1),
        tl.minimum(first + 2, end - 1),
        tl.minimum(first + 3, end - 1),
    )
    offsets, inners, values = tl.arange(0, BLOCK), tl.arange(0, INNER), tl.arange(0, V)
    sum0 = tl.zeros((INNER, V), tl.float32)
    sum1 = tl.zeros((INNER, V), tl.float32)
    sum2 = tl.zeros((INNER, V), tl.float32)
    sum3 = tl.zeros((INNER, V), tl.float32)
    for repeat in range(REPEATS):
        head = state * REPEATS + repeat
        decayed = x_decayed + (slot * STATES * REPEATS + head) * K * C
        x = x_columns + (slot * X_HEADS + head * X_HEADS // (STATES * REPEATS)) * K * C
        if P == 1:
            x = decayed
        y_head = y + start * Y_HEADS * V + head * Y_HEADS // (STATES * REPEATS) * V
        for token in range(0, tokens, BLOCK):
            at = token + offsets
            tile = tl.load(x + (inner * INNER + inners)[:, None] * C + at[None, :])
            # Beyond the chunk's end decayed columns are zero.
            rows_of_y = tl.minimum(at, tokens - 1)[:, None] * Y_HEADS * V
            block = tl.load(y_head + rows_of_y + values[None, :]).to(tile.dtype)
            columns = (x, decayed, at, C, channels, outers)
            sum0 = _add_outer(sum0, tile, block, columns, first, P, PRECISION)
            if OUTER > 1:
                sum1 = _add_outer(sum1, tile, block, columns, second, P, PRECISION)
            if OUTER > 2:
                sum2 = _add_outer(sum2, tile, block, columns, third, P, PRECISION)
                sum3 = _add_outer(sum3, tile, block, columns, fourth, P, PRECISION)
    out = sums + (slot * STATES + state) * rows * (V + 1) + row * V + inners[:, None] * V + values[None, :]
    tl.store(out, sum0.to(sums.dtype.element_ty))
    if OUTER > 1:
        tl.store(out + INNER * V, sum1.to(sums.dtype.element_ty), mask=first + 1 < end)
    if OUTER > 2:
        tl.store(out + 2 * INNER * V, sum2.to(sums.dtype.element_ty), mask=first + 2 < end)
        tl.store(out + 3 * INNER * V, sum3.to(sums.dtype.element_ty), mask=first + 3 < end)


@triton.jit(do_not_specialize=["T", "X_HEADS", "STATES"])
def normaliser_sums_kernel(
    x_columns, x_decayed, delta, sums, bounds, channels, T, C, outers, rows, base, inner, prefix,
    X_HEADS, STATES, REPEATS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, TILED: tl.constexpr, OUTERS: tl.constexpr,
    BLOCK: tl.constexpr, HAS_DELTA: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z's part of `sums`, which stands behind S's, for one inner block; times -delta `[slots, Hs REPEATS, C]` if
    HAS_DELTA.

    A program takes OUTERS outer monomials: one product of them with the inner channels. At P = 2 one launch takes all
    channels as inner ones, and leaves out what a layout of TILED inner channels does not hold.
    """
    group, slot, state = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    _, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    offsets, inners = tl.arange(0, BLOCK), tl.arange(0, INNER)
    outer = group * OUTERS + tl.arange(0, OUTERS)
    result = tl.zeros((OUTERS, INNER), tl.float32)
    for repeat in range(REPEATS):
        head = state * REPEATS + repeat
        decayed = x_decayed + (slot * STATES * REPEATS + head) * K * C
        x = x_columns + (slot * X_HEADS + head * X_HEADS // (STATES * REPEATS)) * K * C
        for token in range(0, tokens, BLOCK):
            at = token + offsets
            tile = tl.load(decayed + (inner * INNER + inners)[None, :] * C + at[:, None])
            mask = (outer < prefix)[:, None] & (at < tokens)[None, :]
            scaled = outer_columns(x, at[None, :], C, channels, outer[:, None], outers, mask, P)
            if HAS_DELTA:
                scaled *= -tl.load(delta + (slot * STATES * REPEATS + head) * C + at)[None, :]
            scaled = as_operand(scaled, tile.dtype, PRECISION)
            result = tl.dot(scaled, tile, result, input_precision=PRECISION)
    out = sums + (slot * STATES + state) * rows * (V + 1) + rows * V + base
    mask = (outer < prefix)[:, None]
    if P == 2:
        at, twice = pair_rows(outer[:, None], inners[None, :], TILED)
        mask = mask & (twice == 0)
    else:
        at = outer[:, None] * INNER + inners[None, :]
    tl.store(out + at, result.to(sums.dtype.element_ty), mask=mask)
