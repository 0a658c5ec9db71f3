"""What a state gives to a block of tokens, and the gradient that it gives: the two loops that most of the time goes to.

Each trip multiplies a register tile, scaled by one outer monomial a token, with one tile of the state. The scalars are
read with tokens side by side, from `[K, C]`, three trips ahead: too narrow to be copied ahead like the tiles, they
would otherwise hold up every trip.

Arguments that belong together come as tuples, plain ones: the compiler takes kernels into code of its own together with
the functions and numbers that they name, but with no class.

- `vectors`, of a block of tokens, twice: a pointer `x` to rows of K channels and `at [BLOCK]`, where the tokens' rows
  begin; a pointer `columns` to `[K, C]`, `here [BLOCK]`, the tokens' columns, and C.
- `state`, a tiled one: pointers to S `[rows, V]` and z `[rows]`; the tables of its layout `channels`, `symmetric` (for
  gradients) and `weights` (of tiles, or for gradients of outer monomials), with `outers` in a row; and `count`, 1, or 0
  for a state of zeros that is not there.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.monomials import CONSTANT_ROWS, outer_columns, outer_count, outer_scalars, pair_rows
from zoo.kernels.power.triton.operands import as_operand

__all__ = [
    "add_gradients", "add_lower_outputs", "add_outputs", "lower_products", "normaliser_gradients", "normalisers",
    "pass_on",
]  # fmt: skip


@triton.jit
def pass_on(later, now, trip):
    """`later`, in a way that Triton's pipeliner takes: it leaves loops alone that hand on a value unchanged."""
    return tl.where(trip < 0, now, later)


@triton.jit
def _add_scaled(total, rows, scalars, tile, P: tl.constexpr, PRECISION: tl.constexpr):
    """`total + (scalars * rows) tile`, with one scalar a row.

    Without tensor cores a product adds up one term after the other. Scaled afterwards, each tile's terms are added up
    by themselves, and errors are those of two short sums instead of one long one.
    """
    if P == 1:
        total = tl.dot(rows, tile, total, input_precision=PRECISION)
    elif PRECISION == "ieee":
        total += scalars[:, None] * tl.dot(rows, tile, input_precision=PRECISION)
    else:
        scaled = as_operand(rows * scalars[:, None], rows.dtype, PRECISION)
        total = tl.dot(scaled, tile, total, input_precision=PRECISION)
    return total


@triton.jit
def _square(K: tl.constexpr, INNER: tl.constexpr):
    """The row of each pair of channels `[K, K]` in a state of degree 2."""
    rows, _ = pair_rows(tl.arange(0, K)[:, None], tl.arange(0, K)[None, :], INNER)
    return rows


@triton.jit
def add_outputs(
    y, vectors, state, K: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`y [BLOCK, V] += S (c * m(x))`."""
    x, at, columns, here, C = vectors
    S, _z, channels, _symmetric, state_weights, outers, count = state
    V: tl.constexpr = y.shape[1]
    inners, values = tl.arange(0, INNER), tl.arange(0, V)
    tile_offsets = inners[:, None] * V + values[None, :]
    base = 0
    for inner in tl.static_range(K // INNER):
        prefix = outer_count((inner + 1) * INNER, P)
        tile = tl.load(x + at[:, None] + (inner * INNER + inners)[None, :]).to(DTYPE)
        weights = state_weights + inner * outers
        end = prefix - 1
        first = outer_scalars(columns, here, C, channels, weights, 0, outers, P)
        second = outer_scalars(columns, here, C, channels, weights, tl.minimum(1, end), outers, P)
        third = outer_scalars(columns, here, C, channels, weights, tl.minimum(2, end), outers, P)
        for outer in range(0, prefix * count):
            rows = tl.load(S + (base + outer * INNER) * V + tile_offsets)
            y = _add_scaled(y, tile, first, rows, P, PRECISION)
            first, second = pass_on(second, first, outer), pass_on(third, second, outer)
            ahead = tl.minimum(outer + 3, end)
            third = outer_scalars(columns, here, C, channels, weights, ahead, outers, P)
        base += prefix * INNER
    return y


@triton.jit
def normalisers(
    vectors, state, K: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, OUTERS: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`z . (c * m(x)) [BLOCK]`."""
    x, at, _columns, _here, _C = vectors
    _S, z, channels, _symmetric, weights, outers, count = state
    inners = tl.arange(0, INNER)
    if P == 2:  # x^T z x
        tile = tl.load(x + at[:, None] + tl.arange(0, K)[None, :]).to(DTYPE)
        block = tl.load(z + _square(K, INNER))
        products = tl.dot(tile, block, input_precision=PRECISION) * tile.to(tl.float32)
        total = tl.sum(products, 1) * count
    else:
        total = tl.zeros(at.shape, tl.float32)
        base = 0
        for inner in tl.static_range(K // INNER):
            prefix = outer_count((inner + 1) * INNER, P)
            tile = tl.load(x + at[:, None] + (inner * INNER + inners)[None, :]).to(DTYPE)
            for start in range(0, prefix * count, OUTERS):
                outer = start + tl.arange(0, OUTERS)
                exists = outer < prefix
                block = tl.load(z + base + outer[None, :] * INNER + inners[:, None], exists[None, :], 0)
                mask = exists[None, :] & (at >= 0)[:, None]
                monomials = outer_columns(x, at[:, None], 1, channels, outer[None, :], outers, mask, P)
                monomials *= tl.load(weights + inner * outers + outer, exists, 0)[None, :]
                total += tl.sum(tl.dot(tile, block, input_precision=PRECISION) * monomials, 1)
            base += prefix * INNER
    return total


@triton.jit
def add_gradients(
    dx, y, vectors, state, K: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr
):
    """`dx_j [BLOCK, K] += sum_r c_r m_r(x) (S_(r, j) . y)` for y `[BLOCK, V]`: p times less than the gradient."""
    _x, _at, columns, here, C = vectors
    S, _z, channels, symmetric, weights, outers, count = state
    V: tl.constexpr = y.shape[1]
    channel, value = tl.arange(0, K), tl.arange(0, V)
    all_outers = outer_count(K, P)
    end = all_outers - 1
    first = outer_scalars(columns, here, C, channels, weights, 0, outers, P)
    second = outer_scalars(columns, here, C, channels, weights, tl.minimum(1, end), outers, P)
    third = outer_scalars(columns, here, C, channels, weights, tl.minimum(2, end), outers, P)
    for outer in range(0, all_outers * count):
        rows = outer * K + channel if INNER == K else tl.load(symmetric + outer * K + channel)
        tile = tl.load(S + rows[:, None] * V + value[None, :])
        dx = _add_scaled(dx, y, first, tl.trans(tile), P, PRECISION)
        first, second = pass_on(second, first, outer), pass_on(third, second, outer)
        third = outer_scalars(columns, here, C, channels, weights, tl.minimum(outer + 3, end), outers, P)
    return dx


@triton.jit
def normaliser_gradients(
    vectors, weight, state, K: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, OUTERS: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`sum_r c_r m_r(x) z_(r, j) weight [BLOCK, K]`: p times less than the gradient."""
    x, at, _columns, _here, _C = vectors
    _S, z, channels, symmetric, weights, outers, count = state
    channel = tl.arange(0, K)
    if P == 2:
        tile = tl.load(x + at[:, None] + channel[None, :]).to(tl.float32) * (weight * count)[:, None]
        block = tl.load(z + _square(K, INNER))
        dx = tl.dot(as_operand(tile, DTYPE, PRECISION), block, input_precision=PRECISION)
    else:
        dx = tl.zeros((at.shape[0], K), tl.float32)
        all_outers = outer_count(K, P)
        for start in range(0, all_outers * count, OUTERS):
            outer = start + tl.arange(0, OUTERS)
            exists = outer < all_outers
            rows = outer[:, None] * K + channel[None, :]
            if INNER < K:
                rows = tl.load(symmetric + rows, exists[:, None], 0)
            block = tl.load(z + rows, exists[:, None], 0)
            mask = exists[None, :] & (at >= 0)[:, None]
            monomials = outer_columns(x, at[:, None], 1, channels, outer[None, :], outers, mask, P)
            monomials *= weight[:, None]
            if P > 2:
                monomials *= tl.load(weights + outer, exists, 0)[None, :]
            dx = tl.dot(as_operand(monomials, DTYPE, PRECISION), block, dx, input_precision=PRECISION)
    return dx


@triton.jit
def _lower_state(state, rows, K: tl.constexpr, V: tl.constexpr, P: tl.constexpr):
    """Of a state `[rows, V]`, then z `[rows]`, pointers to the constant channel's rows, S's and z's.

    Of P = 2 they are K channels' and then the constant's own; of P = 1 that alone. Rows of zeros follow.
    """
    first = rows - CONSTANT_ROWS - (K if P == 2 else 0)
    return state + first * V, state + rows * V + first


@triton.jit
def add_lower_outputs(
    y, total, tile, linear, constant, state, rows, P: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr
):
    """`y [BLOCK, V]` and, if NORMALIZE, `total [BLOCK]`, plus what the constant channel's rows give to a tile of x.

    That is `linear x [BLOCK, K]` times the rows of the K channels, at P = 2, and `constant` times the last one.
    """
    K: tl.constexpr = tile.shape[1]
    V: tl.constexpr = y.shape[1]
    S, z = _lower_state(state, rows, K, V, P)
    channel, value = tl.arange(0, K), tl.arange(0, V)
    if P == 2:
        y += linear * tl.dot(tile, tl.load(S + channel[:, None] * V + value[None, :]), input_precision=PRECISION)
        if NORMALIZE:
            total += linear * tl.sum(tile.to(tl.float32) * tl.load(z + channel).to(tl.float32)[None, :], 1)
        S += K * V
        z += K
    y += constant * tl.load(S + value).to(tl.float32)[None, :]
    if NORMALIZE:
        total += constant * tl.load(z).to(tl.float32)
    return y, total


@triton.jit
def lower_products(
    y, weight, state, rows, K: tl.constexpr, P: tl.constexpr, NORMALISER: tl.constexpr, PRECISION: tl.constexpr
):
    """For `y [BLOCK, V]` the products `S_i . y` of the constant channel's rows, of the K channels `[BLOCK, K]` at P = 2
    (zeros at P = 1) and of the constant `[BLOCK]`; if NORMALISER, plus `z_i weight`, weight `[BLOCK]`.
    """
    V: tl.constexpr = y.shape[1]
    S, z = _lower_state(state, rows, K, V, P)
    channel, value = tl.arange(0, K), tl.arange(0, V)
    linear = tl.zeros((y.shape[0], K), tl.float32)
    if P == 2:
        tile = tl.load(S + channel[:, None] * V + value[None, :])
        linear = tl.dot(y, tl.trans(tile), input_precision=PRECISION)
        if NORMALISER:
            linear += weight[:, None] * tl.load(z + channel).to(tl.float32)[None, :]
        S += K * V
        z += K
    constant = tl.sum(y.to(tl.float32) * tl.load(S + value).to(tl.float32)[None, :], 1)
    if NORMALISER:
        constant += weight * tl.load(z).to(tl.float32)
    return linear, constant
