"""What states give to queries: `sum_i x_i sum_r P c_r M_r(x) S_(r, i)`, i after r, and what repeats r's last one."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.from_state import pass_on
from zoo.kernels.power.triton.monomials import (
    count_monomials,
    outer_channels,
    outer_count,
    outer_factors,
    weighted_monomials,
)
from zoo.kernels.power.triton.operands import as_operand
from zoo.kernels.power.triton.program import locate

__all__ = ["high_outputs_kernel"]


@triton.jit
def _first_block(outer, K: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr):
    """The first block of INNER channels that has an outer monomial; its first row, if blocks are the layout's."""
    inner, base = 0, 0
    for block in tl.static_range(1, K // INNER):
        before = outer_count(block * INNER, P)
        inner += tl.where(outer >= before, 1, 0)
        base += tl.where(outer >= before, before * INNER, 0)
    return inner, base


@triton.jit(do_not_specialize=["T", "BLOCKS", "X_HEADS", "HEADS", "STATES"])
def high_outputs_kernel(
    x_columns, states, y, total, bounds, channels, symmetric, coefficients, shares, T, C, outers, rows,
    X_HEADS, HEADS, STATES, BLOCKS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, OUTERS: tl.constexpr, BLOCK: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, FIRST: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """y `[B T, HEADS, V]` and, if NORMALIZE, total `[B T, HEADS]`, float32, with neither decay nor scale.

    x_columns `[slots, Hx, K, C]`, states `[slots, Hs, rows (V + 1)]`, tables as in `Tables`. Sequences' first chunks
    count where FIRST. A program takes BLOCK tokens, and at a time OUTERS outer monomials by INNER channels, of the TILE
    that lie side by side.

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
    channel = tl.arange(0, K)
    result = tl.zeros((BLOCK, V), tl.float32)
    of_normaliser = tl.zeros((BLOCK, K), tl.float32)
    for first in range(0, outers, OUTERS):
        outer = first + tl.arange(0, OUTERS)
        existing = tl.minimum(outer, outers - 1)
        last = tl.load(channels + (P - 2) * outers + existing)
        share = tl.load(shares + existing)
        of_outer = outer_channels(channels, existing[None, :], outers, P)
        factors = outer_factors(x_columns, here[:, None], C, of_outer)
        coefficient = tl.load(coefficients + outer, outer < outers, 0)[None, :]  # zero where there is none
        monomials = weighted_monomials(factors, coefficient, dtype, PRECISION)
        repeated = as_operand(monomials.to(tl.float32) * factors[P - 2].to(tl.float32), dtype, PRECISION)
        own = tl.load(states + tl.load(symmetric + last * outers + existing)[:, None] * V + values[None, :])
        own = as_operand(own.to(tl.float32) * share[:, None], dtype, PRECISION)
        result = tl.dot(repeated, own, result, input_precision=PRECISION)
        if NORMALIZE:  # all channels at once
            row = tl.load(symmetric + channel[None, :] * outers + existing[:, None])
            later = channel[None, :] > last[:, None]
            z = tl.load(states + rows * V + row).to(tl.float32)
            z *= tl.where(channel[None, :] == last[:, None], share[:, None], tl.where(later, 1.0, 0.0))
            z = as_operand(z, dtype, PRECISION)
            of_normaliser = tl.dot(monomials, z, of_normaliser, input_precision=PRECISION)

        block, _ = _first_block(first, K, P, INNER)
        _, base = _first_block(first, K, P, TILE)
        x = x_columns + inners[None, :] * C + here[:, None]
        own_channels = tl.load(x + block * INNER * C)
        # Of a block's channels those count that come after this one.
        before = last[:, None] - column[None, :] // V
        places = existing[:, None] * (TILE * V) + column[None, :]
        for inner in range(block, K // INNER):
            tl.assume(inner >= 0)  # so that nothing is chosen where `pass_on` seems to choose
            # Those of the next block, on their way while products are.
            next_channels = tl.load(x + tl.minimum(inner + 1, K // INNER - 1) * INNER * C)
            tile = tl.load(states + (base + inner * INNER % TILE) * V + places, inner * INNER > before, 0)
            product = tl.dot(monomials, tile, input_precision=PRECISION).reshape(BLOCK, INNER, V)
            result += tl.sum(product * own_channels.to(tl.float32)[:, :, None], 1)
            own_channels = pass_on(next_channels, own_channels, inner)
            end = (inner + 1) * INNER
            base += tl.where(end % TILE == 0, count_monomials(end, P - 1) * TILE, 0)
    exist = here < tokens
    tl.store(y + here[:, None] * HEADS * V + values[None, :], P * result, exist[:, None])
    if NORMALIZE:
        vectors = tl.load(x_columns + channel[None, :] * C + here[:, None]).to(tl.float32)
        tl.store(total + here * HEADS, P * tl.sum(of_normaliser * vectors, 1), exist)
