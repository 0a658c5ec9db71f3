"""Gradient of one side's tokens through a state: `dx_j = p sum_r c_r m_r(x) (S_(r, j) y + z_(r, j) w)`."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.monomials import outer_columns, outer_count, outer_scalars

__all__ = ["load_tile", "normaliser_gradient"]


@triton.jit
def load_tile(states, symmetric, outer, K: tl.constexpr, V: tl.constexpr, WHOLE: tl.constexpr):
    """A state's rows for one outer monomial and every channel `[K, V]`."""
    channels, values = tl.arange(0, K), tl.arange(0, V)
    if WHOLE:
        rows = outer * K + channels
    else:
        rows = tl.load(symmetric + outer * K + channels)
    return tl.load(states + rows[:, None] * V + values[None, :])


@triton.jit
def normaliser_gradient(
    dx, x, at, weight, z, channels, symmetric, gradient_weights, outers, count,
    K: tl.constexpr, P: tl.constexpr, OUTERS: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add z's part, without the factor p, to dx `[BLOCK, K]`; weight `[BLOCK]`, count 1, or 0 to leave dx alone."""
    channel = tl.arange(0, K)
    all_outers = outer_count(K, P)
    for first in range(0, all_outers * count, OUTERS):
        outer = first + tl.arange(0, OUTERS)
        exists = outer < all_outers
        if WHOLE:
            rows = outer[:, None] * K + channel[None, :]
        else:
            rows = tl.load(symmetric + outer[:, None] * K + channel[None, :], exists[:, None], 0)
        block = tl.load(z + rows, exists[:, None], 0)
        mask = exists[None, :] & (at >= 0)[:, None]
        monomials = outer_columns(x, at[:, None], 1, channels, outer[None, :], outers, mask, P)
        monomials *= tl.load(gradient_weights + outer, exists, 0)[None, :] * weight[:, None]
        dx = tl.dot(monomials.to(block.dtype), block, dx, input_precision=PRECISION)
    return dx
