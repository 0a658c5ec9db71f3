"""What a state gives to a block of tokens, and the gradient that it gives, at p <= 2: the two loops that most of the
time goes to. Those of higher powers are in `high`.

Each trip multiplies a register tile, scaled by one channel a token, with one tile of the state. The scalars are read
with tokens side by side, from `[K, C]`, three trips ahead: too narrow to be copied ahead like the tiles, they would
otherwise hold up every trip.

Arguments that belong together come as tuples, plain ones: the compiler takes kernels into code of its own together with
the functions and numbers that they name, but with no class.

- `vectors`, of a block of tokens, twice: a pointer `x` to rows of K channels and `at [BLOCK]`, where the tokens' rows
  begin; a pointer `columns` to `[K, C]`, `here [BLOCK]`, the tokens' columns, and C.
- `state`, a tiled one: pointers to S `[rows, V]` and z `[rows]`; and `count`, 1, or 0 for a state of zeros that is not
  there.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.monomials import CONSTANT_ROWS, outer_count, pair_rows
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
def _scalars(columns, here, C, channel, K: tl.constexpr, P: tl.constexpr):
    """A channel of each token, or the last one for a later channel; anything at P = 1, where nothing is scaled."""
    return here if P == 1 else tl.load(columns + here + tl.minimum(channel, K - 1) * C)


@triton.jit
def _square(K: tl.constexpr, INNER: tl.constexpr):
    """The row of each pair of channels `[K, K]` in a state of degree 2."""
    rows, _ = pair_rows(tl.arange(0, K)[:, None], tl.arange(0, K)[None, :], INNER)
    return rows


@triton.jit
def add_outputs(y, vectors, state, K: tl.constexpr, P: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """`y [BLOCK, V] += S (c * m(x))`, of a state whose tiles have all channels."""
    x, at, columns, here, C = vectors
    S, _z, count = state
    V: tl.constexpr = y.shape[1]
    channel, value = tl.arange(0, K), tl.arange(0, V)
    tile = tl.load(x + at[:, None] + channel[None, :]).to(DTYPE)
    first = _scalars(columns, here, C, 0, K, P)
    second, third = _scalars(columns, here, C, 1, K, P), _scalars(columns, here, C, 2, K, P)
    for outer in range(0, outer_count(K, P) * count):
        rows = tl.load(S + (outer * K + channel[:, None]) * V + value[None, :])
        y = _add_scaled(y, tile, first, rows, P, PRECISION)
        first, second = pass_on(second, first, outer), pass_on(third, second, outer)
        third = _scalars(columns, here, C, outer + 3, K, P)
    return y


@triton.jit
def normalisers(
    vectors, state, K: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr
):
    """`z . (c * m(x)) [BLOCK]`."""
    x, at, _columns, _here, _C = vectors
    _S, z, count = state
    channel = tl.arange(0, K)
    tile = tl.load(x + at[:, None] + channel[None, :]).to(DTYPE)
    if P == 1:
        products = tl.load(z + channel).to(tl.float32)[None, :] * tile.to(tl.float32)
    else:  # x^T z x
        products = tl.dot(tile, tl.load(z + _square(K, INNER)), input_precision=PRECISION) * tile.to(tl.float32)
    return tl.sum(products, 1) * count


@triton.jit
def add_gradients(dx, y, vectors, state, K: tl.constexpr, P: tl.constexpr, PRECISION: tl.constexpr):
    """`dx_j [BLOCK, K] += sum_r m_r(x) (S_(r, j) . y)` for y `[BLOCK, V]`: p times less than the gradient."""
    _x, _at, columns, here, C = vectors
    S, _z, count = state
    V: tl.constexpr = y.shape[1]
    channel, value = tl.arange(0, K), tl.arange(0, V)
    first = _scalars(columns, here, C, 0, K, P)
    second, third = _scalars(columns, here, C, 1, K, P), _scalars(columns, here, C, 2, K, P)
    for outer in range(0, outer_count(K, P) * count):
        tile = tl.load(S + (outer * K + channel)[:, None] * V + value[None, :])
        dx = _add_scaled(dx, y, first, tl.trans(tile), P, PRECISION)
        first, second = pass_on(second, first, outer), pass_on(third, second, outer)
        third = _scalars(columns, here, C, outer + 3, K, P)
    return dx


@triton.jit
def normaliser_gradients(
    vectors, weight, state, K: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`sum_r m_r(x) z_(r, j) weight [BLOCK, K]`: p times less than the gradient."""
    x, at, _columns, _here, _C = vectors
    _S, z, count = state
    channel = tl.arange(0, K)
    if P == 1:
        dx = (weight * count)[:, None] * tl.load(z + channel).to(tl.float32)[None, :]
    else:
        tile = tl.load(x + at[:, None] + channel[None, :]).to(tl.float32) * (weight * count)[:, None]
        block = tl.load(z + _square(K, INNER))
        dx = tl.dot(as_operand(tile, DTYPE, PRECISION), block, input_precision=PRECISION)
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
