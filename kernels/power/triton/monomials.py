# mypy: ignore-errors
"""Outer monomials inside kernels: what scales a tile of q or k."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.operands import as_operand

__all__ = [
    "CONSTANT_ROWS", "count_monomials", "multiply_factors", "outer_channels", "outer_count",
    "outer_factors", "outer_scalars", "outer_with_decay", "pair_rows", "pair_weights", "power", "weighted_monomials",
]  # fmt: skip

# Of a state with an offset: the last ones, of which the first belongs to the constant and the others are zero.
CONSTANT_ROWS = tl.constexpr(16)


@triton.jit
def count_monomials(K, DEGREE: tl.constexpr):
    """Monomials of this degree in K channels."""
    if DEGREE == 0:
        return 1
    if DEGREE == 1:
        return K
    if DEGREE == 2:
        return K * (K + 1) // 2
    if DEGREE == 3:
        return K * (K + 1) * (K + 2) // 6
    return K * (K + 1) * (K + 2) * (K + 3) // 24


@triton.jit
def outer_count(K: tl.constexpr, P: tl.constexpr):
    """Monomials of degree P - 1 in K channels."""
    return count_monomials(K, P - 1)


@triton.jit
def pair_rows(one, other, INNER: tl.constexpr):
    """The row of a pair of channels in a state of degree 2, and whether it stands there as (other, one)."""
    swapped = one // INNER > other // INNER
    outer, inner = tl.where(swapped, other, one), tl.where(swapped, one, other)
    block = inner // INNER
    return INNER * INNER * (block * (block + 1) // 2) + outer * INNER + inner % INNER, swapped


@triton.jit
def pair_weights(row, K: tl.constexpr, INNER: tl.constexpr):
    """How often a row of degree 2 counts in a product of two states: twice where it stands for both orders."""
    result = tl.where(row < 0, 1.0, 2.0)
    for block in tl.static_range(K // INNER):
        result = tl.where(row // (INNER * INNER) == block * (block + 3) // 2, 1.0, result)
    return result


@triton.jit
def power(x, P: tl.constexpr):
    """x^P by products, P from 0 on."""
    result = x
    if P == 0:
        result = x * 0 + 1
    for _ in tl.static_range(1, P):
        result = result * x
    return result


@triton.jit
def outer_scalars(x, at, stride, channels, weights, outer, outers, P: tl.constexpr):
    """Outer monomial `outer`, of degree P - 1, of the tokens `at`, times its weight (1 for P <= 2), in x's dtype.

    Channels lie `stride` apart in x. There is nothing to scale by at P = 1.
    """
    if P <= 2:
        result = at if P == 1 else tl.load(x + at + outer * stride)
    else:
        product = tl.load(x + at + tl.load(channels + outer) * stride).to(tl.float32) * tl.load(weights + outer)
        for degree in tl.static_range(1, P - 1):
            product *= tl.load(x + at + tl.load(channels + degree * outers + outer) * stride).to(tl.float32)
        result = product.to(x.dtype.element_ty)
    return result


@triton.jit
def outer_channels(channels, outer, outers, P: tl.constexpr):
    """The P - 1 channels of outer monomials that exist, from a table with `outers` in a row; P > 2."""
    found = ()
    for degree in tl.static_range(P - 1):
        found += (tl.load(channels + degree * outers + outer),)
    return found


@triton.jit
def outer_factors(x, at, stride, channels):
    """What `multiply_factors` makes outer monomials of these channels from, of the tokens `at`, which exist."""
    factors = ()
    for degree in tl.static_range(len(channels)):
        factors += (tl.load(x + at + channels[degree] * stride),)
    return factors


@triton.jit
def multiply_factors(factors):
    """Monomials, float32."""
    result = factors[0].to(tl.float32)
    for degree in tl.static_range(1, len(factors)):
        result *= factors[degree].to(tl.float32)
    return result


@triton.jit
def weighted_monomials(factors, coefficient, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """Outer monomials, P > 2, times their coefficients, as a product's operand."""
    monomials = multiply_factors(factors)
    if len(factors) == 2:
        # Coefficients are 1 and 2, so that rounding may come first: each step is then one instruction for two tokens.
        monomials = as_operand(monomials, dtype, PRECISION).to(tl.float32)
        coefficient = coefficient.to(dtype).to(tl.float32)
    return as_operand(monomials * coefficient, dtype, PRECISION)


@triton.jit
def outer_with_decay(columns, outer, P: tl.constexpr):
    """An outer monomial of a block's vectors, one channel of which is read where decay has been applied.

    columns: pointers to vectors side by side `[K, C]` and to the same with decay, the tokens `at [BLOCK]`, C, and the
    table of outer monomials' channels with `outers` in a row. A plain tuple: see `from_state`.
    """
    x, decayed, at, C, channels, outers = columns
    channel = outer if P == 2 else tl.load(channels + outer)
    scalars = tl.load(decayed + channel * C + at)
    if P > 2:
        wide = scalars.to(tl.float32)
        for degree in tl.static_range(1, P - 1):
            wide *= tl.load(x + tl.load(channels + degree * outers + outer) * C + at).to(tl.float32)
        scalars = wide.to(scalars.dtype)
    return scalars
