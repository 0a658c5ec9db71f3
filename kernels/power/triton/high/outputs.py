"""What states give to queries: `sum_i x_i sum_r P c_r M_r(x) S_(r, i)`, i after r, and what repeats r's last one."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.from_state import pass_on
from zoo.kernels.power.triton.monomials import count_monomials, outer_count, outer_monomials
from zoo.kernels.power.triton.operands import as_operand
from zoo.kernels.power.triton.program import locate

__all__ = ["high_outputs_kernel"]

CHANNELS = tl.constexpr(16)  # those of a block and more, as many as a product has columns at least


@triton.jit
def _first_block(outer, K: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr):
    """The first inner block that has an outer monomial, and its first row."""
    inner, base = 0, 0
    for block in tl.static_range(1, K // INNER):
        before = outer_count(block * INNER, P)
        inner += tl.where(outer >= before, 1, 0)
        base += tl.where(outer >= before, before * INNER, 0)
    return inner, base


@triton.jit(do_not_specialize=["T", "BLOCKS", "X_HEADS", "HEADS", "STATES"])
def high_outputs_kernel(
    x_columns, states, y, total, bounds, channels, coefficients, T, C, outers, rows, X_HEADS, HEADS, STATES, BLOCKS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, OUTERS: tl.constexpr, BLOCK: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, FIRST: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """y `[B T, HEADS, V]` and, if NORMALIZE, total `[B T, HEADS]`, float32, with neither decay nor scale.

    x_columns `[slots, Hx, K, C]`, states `[slots, Hs, rows (V + 1)]`, coefficients of outer monomials `[outers]`.
    Sequences' first chunks count where FIRST. A program takes BLOCK tokens, OUTERS outer monomials at a time.

    Of a block's rows those count whose channel is after all of the outer monomial's: so each monomial counts once, as
    often as it occurs, `P c_r` times. Those whose channel is the outer monomial's last one are a product of their own.
    """
    part, _, head, slot, start, tokens, place = locate(BLOCKS, 1, HEADS, T, C, bounds, PACKED)
    token = part * BLOCK
    if token >= tokens or (place == 0 and not FIRST):
        return
    x_columns += (slot * X_HEADS + head * X_HEADS // HEADS) * K * C
    states += (slot * STATES + head * STATES // HEADS) * rows * (V + 1)
    y += (start * HEADS + head) * V
    total += start * HEADS + head
    dtype = x_columns.dtype.element_ty

    here = token + tl.arange(0, BLOCK)
    values, column, inners = tl.arange(0, V), tl.arange(0, INNER * V), tl.arange(0, INNER)
    some = tl.arange(0, CHANNELS)
    result = tl.zeros((BLOCK, V), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, outers, OUTERS):
        outer = first + tl.arange(0, OUTERS)
        exists = outer < outers
        existing = tl.minimum(outer, outers - 1)
        last = tl.load(channels + (P - 2) * outers + existing)
        monomials = outer_monomials(x_columns, here[:, None], C, channels, existing[None, :], outers, P)
        monomials *= (P * tl.load(coefficients + existing))[None, :]

        times = tl.full((OUTERS,), 2, tl.int32)  # that the last channel occurs once it is there once more
        for degree in tl.static_range(P - 2):
            times += tl.where(tl.load(channels + degree * outers + existing) == last, 1, 0)
        repeated = tl.load(x_columns + last[None, :] * C + here[:, None]).to(tl.float32)
        repeated = as_operand(monomials * repeated / times.to(tl.float32)[None, :], dtype, PRECISION)
        _block, start_of_block = _first_block(outer, K, P, INNER)
        row = start_of_block + existing * INNER + last % INNER
        own = tl.load(states + row[:, None] * V + values[None, :], exists[:, None], 0)
        result = tl.dot(repeated, own, result, input_precision=PRECISION)
        if NORMALIZE:
            own_z = tl.load(states + rows * V + row, exists, 0).to(tl.float32)
            sums += tl.sum(repeated.to(tl.float32) * own_z[None, :], 1)

        monomials = as_operand(monomials, dtype, PRECISION)
        block, base = _first_block(first, K, P, INNER)
        x = x_columns + inners[None, :] * C + here[:, None]
        own_channels = tl.load(x + block * INNER * C)
        for inner in range(block, K // INNER):
            # Those of the next block, on their way while products are.
            next_channels = tl.load(x + tl.minimum(inner + 1, K // INNER - 1) * INNER * C)
            prefix = count_monomials((inner + 1) * INNER, P - 1)
            later = exists[:, None] & (inner * INNER + column[None, :] // V > last[:, None])
            tile = tl.load(states + (base + outer[:, None] * INNER) * V + column[None, :], later, 0)
            product = tl.dot(monomials, tile, input_precision=PRECISION).reshape(BLOCK, INNER, V)
            result += tl.sum(product * own_channels.to(tl.float32)[:, :, None], 1)
            if NORMALIZE:
                later_z = exists[:, None] & (inner * INNER + some[None, :] > last[:, None]) & (some < INNER)[None, :]
                z = tl.load(states + rows * V + base + outer[:, None] * INNER + some[None, :], later_z, 0)
                product_z = tl.dot(monomials, z, input_precision=PRECISION)
                there = (inner * INNER + tl.minimum(some, INNER - 1))[None, :] * C + here[:, None]
                channel = tl.load(x_columns + there).to(tl.float32)
                sums += tl.sum(product_z * channel, 1)
            own_channels = pass_on(next_channels, own_channels, inner)
            base += prefix * INNER
    exist = here < tokens
    tl.store(y + here[:, None] * HEADS * V + values[None, :], result, exist[:, None])
    if NORMALIZE:
        tl.store(total + here * HEADS, sums, exist)
