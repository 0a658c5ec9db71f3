# mypy: ignore-errors
"""What one chunk adds to the state: `sum_t M(x_t) (decay_t x_t y_t^T)`."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.from_state import pass_on
from zoo.kernels.power.triton.monomials import multiply_factors, outer_channels, outer_count, outer_factors
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["high_sums_kernel"]

CHANNELS = tl.constexpr(16)  # a block's channels and more, as many as a product has columns at least


@triton.jit
def _channels(decayed, delta, at, C, INNER: tl.constexpr, HAS_DELTA: tl.constexpr):
    """A block's channels with decay `[BLOCK, CHANNELS]`, times -delta if HAS_DELTA: what z's sums are of; float32."""
    channel = tl.arange(0, CHANNELS)[None, :]
    result = tl.load(decayed + tl.minimum(channel, INNER - 1) * C + at[:, None]).to(tl.float32)
    if HAS_DELTA:
        result *= -tl.load(delta + at)[:, None]
    return result


@triton.jit
def _locate(program, K: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, OUTERS: tl.constexpr):
    """Of programs for OUTERS outer monomials each, inner block after inner block: that block, its first row, its number
    of monomials, and the program's first one.
    """
    inner, base, first, end = 0, 0, program, outer_count(INNER, P)
    for block in tl.static_range(1, K // INNER):
        before = outer_count(block * INNER, P)
        programs = (before + OUTERS - 1) // OUTERS
        later = (inner == block - 1) & (first >= programs)
        inner = tl.where(later, block, inner)
        base = tl.where(later, base + before * INNER, base)
        first = tl.where(later, first - programs, first)
        end = tl.where(later, outer_count((block + 1) * INNER, P), end)
    return inner, base, end, first * OUTERS


@triton.jit(do_not_specialize=["T", "X_HEADS", "Y_HEADS", "STATES"])
def high_sums_kernel(
    x_columns, x_decayed, y, delta, sums, bounds, channels, T, C, outers, rows, X_HEADS, Y_HEADS, STATES, REPEATS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, OUTERS: tl.constexpr, BLOCK: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, HAS_NORMALISER: tl.constexpr, HAS_DELTA: tl.constexpr,
):  # fmt: skip
    """`sums [slots, Hs, rows (V + 1)]`, z's part if HAS_NORMALISER, times -delta `[slots, Hs REPEATS, C]` if HAS_DELTA;
    other arguments as in `state_sums_kernel`.

    A program takes OUTERS outer monomials of one inner block, BLOCK tokens at a time.
    """
    slot, state = tl.program_id(1).to(tl.int64), tl.program_id(2)
    inner, base, end, first = _locate(tl.program_id(0), K, P, INNER, OUTERS)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    offsets, inners, values = tl.arange(0, BLOCK), tl.arange(0, INNER), tl.arange(0, V)
    outer = first + tl.arange(0, OUTERS)
    existing = tl.minimum(outer, end - 1)[:, None]
    outer_places = outer_channels(channels, existing, outers, P)
    total = tl.zeros((OUTERS, INNER * V), tl.float32)
    total_z = tl.zeros((OUTERS, CHANNELS), tl.float32)
    dtype = x_columns.dtype.element_ty
    for repeat in range(REPEATS):
        head = state * REPEATS + repeat
        decayed = x_decayed + (slot * STATES * REPEATS + head) * K * C + inner * INNER * C
        x = x_columns + (slot * X_HEADS + head * X_HEADS // (STATES * REPEATS)) * K * C
        y_head = y + start * Y_HEADS * V + head * Y_HEADS // (STATES * REPEATS) * V
        delta_head = delta + (slot * STATES * REPEATS + head) * C
        own_channels = tl.load(decayed + inners[None, :] * C + offsets[:, None])
        factors = outer_factors(x, offsets[None, :], C, outer_places)
        for token in range(0, tokens, BLOCK):
            tl.assume(token >= 0)  # so that nothing is chosen where `pass_on` seems to choose
            at = token + offsets
            # Three dimensions from the start: so each thread has neighbouring values, and stores them together.
            rows_of_y = tl.minimum(at, tokens - 1)[:, None, None] * Y_HEADS * V
            value = tl.load(y_head + rows_of_y + values[None, None, :]).to(tl.float32)
            pairs = (own_channels.to(tl.float32)[:, :, None] * value).reshape(BLOCK, INNER * V)
            monomials = as_operand(multiply_factors(factors), dtype, PRECISION)
            total = tl.dot(monomials, as_operand(pairs, dtype, PRECISION), total, input_precision=PRECISION)
            if HAS_NORMALISER:
                of_z = as_operand(_channels(decayed, delta_head, at, C, INNER, HAS_DELTA), dtype, PRECISION)
                total_z = tl.dot(monomials, of_z, total_z, input_precision=PRECISION)
            # What the next tokens need is on its way while products are, and not before: all threads wait for what
            # products read, and with it for whatever is on its way. Outer monomials are of few rows, which the L1 cache
            # has, and copies to shared memory pass it by. Beyond the chunk's end decayed columns are zero.
            ahead = tl.minimum(token + BLOCK, C - BLOCK)
            next_channels = tl.load(decayed + inners[None, :] * C + (ahead + offsets)[:, None])
            next_factors = outer_factors(x, ahead + offsets[None, :], C, outer_places)
            own_channels = pass_on(next_channels, own_channels, token)
            passed = ()
            for degree in tl.static_range(P - 1):
                passed += (pass_on(next_factors[degree], factors[degree], token),)
            factors = passed
    column = tl.arange(0, INNER * V)
    out = sums + (slot * STATES + state) * rows * (V + 1) + base * V
    places = outer[:, None] * (INNER * V) + column[None, :]
    tl.store(out + places, total.to(sums.dtype.element_ty), (outer < end)[:, None])
    if HAS_NORMALISER:
        channel = tl.arange(0, CHANNELS)
        out = sums + (slot * STATES + state) * rows * (V + 1) + rows * V + base
        exist = (outer < end)[:, None] & (channel < INNER)[None, :]
        tl.store(out + outer[:, None] * INNER + channel[None, :], total_z.to(sums.dtype.element_ty), exist)
