"""What a chunk does to the state before it, whatever that is: `S_end = decay S + R^T (v - (k exp(G)) S)`.

With `A_ij = exp(G_i - G_j) (k_i . k_j) beta_j` for j < i, the errors of a chunk's tokens are
`e = (1 + A)^-1 (v - (k exp(G)) S)`, and `R = (1 + A)^-T beta k exp(G_C - G)` is what they write. It changes the state
only where keys point to, which a product of the two matrices of keys, once rounded, would not: what is orthogonal to
keys that are written again and again has to stay as it is.
"""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.chunk import boundary_decays, chunk_scores, chunk_sums, load_shared
from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["inverse_below", "prepare_kernel", "solve", "solve_transposed"]


@triton.jit
def inverse_below(system, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """`(1 + system)^-1`, of what lies below the diagonal of `system [C, C]`, float32 or float64.

    Of two inverted blocks on the diagonal and the block between them, `[[X, 0], [A, Y]]`, the inverse is
    `[[X, 0], [-Y A X, Y]]`; blocks double from single tokens to the chunk. All entries on the way are entries of
    inverses, so that nothing grows that the result does not have.
    """
    at = tl.arange(0, system.shape[0])
    row, column = at[:, None], at[None, :]
    inverse = tl.where(row == column, 1.0, tl.where((row // 2 == column // 2) & (row > column), -system, 0.0))
    for level in tl.static_range(1, LEVELS):
        size = 1 << level
        between = (row // (2 * size) == column // (2 * size)) & (row // size > column // size)
        block = as_operand(tl.where(between, system, 0.0), system.dtype, PRECISION)
        inverted = as_operand(inverse, system.dtype, PRECISION)
        found = as_operand(tl.dot(block, inverted, input_precision=PRECISION), system.dtype, PRECISION)
        inverse -= tl.dot(inverted, found, input_precision=PRECISION)
    return inverse


@triton.jit
def solve(inverse, x, PRECISION: tl.constexpr):
    """`inverse x` with more digits than bfloat16 has: where keys are alike, the columns of the inverse cancel."""
    x = as_operand(x, tl.float32, PRECISION)
    return tl.dot(inverse.to(tl.float32), x, input_precision=PRECISION)


@triton.jit
def solve_transposed(inverse, x, PRECISION: tl.constexpr):
    """`inverse^T x` with as many digits."""
    PRODUCTS: tl.constexpr = tl.float64 if inverse.dtype == tl.float64 else tl.float32
    x = as_operand(x, PRODUCTS, PRECISION)
    return tl.dot(tl.trans(inverse.to(PRODUCTS)), x, input_precision=PRECISION)


@triton.jit(do_not_specialize=["T"])
def prepare_kernel(
    k, log_g, sums, beta, inverses, reads, kept, wholes, bounds, T, K_HEADS, HEADS,
    C: tl.constexpr, K: tl.constexpr, LEVELS: tl.constexpr, LOWEST: tl.constexpr,
    GATED: tl.constexpr, CHANNELS: tl.constexpr, CORRECTS: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """inverses `(1 + A)^-1 [slots, Hv, C, C]`, reads `-k exp(G)` and kept `R`, both `[slots, Hv, C, K]`, and wholes,
    the decay of a whole chunk `[slots, Hv]`, or `[slots, Hv, K]` where CHANNELS have gates.

    From k `[B T, Hk, K]`, beta `[B T, Hv]`, if it CORRECTS, and, if GATED, log_g `[B T, Hv]` or channels' sums of gates
    `[B T, Hv, K]`. A program takes one chunk and value head.

    EXACT: in float64 until it is stored. A product with an equal key, once rounded, is wrong for all pairs alike, and
    tensor cores cut off what PyTorch's float32 products round.
    """
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    place = slot * HEADS + head
    dtype: tl.constexpr = kept.dtype.element_ty
    PRODUCTS: tl.constexpr = tl.float64 if EXACT else dtype
    DIGITS: tl.constexpr = "ieee" if EXACT else PRECISION
    at, channels = tl.arange(0, C), tl.arange(0, K)
    here = at < tokens
    chunk, heads, gates = (
        (start, tokens, head),
        (K_HEADS, HEADS),
        (sums + (start * HEADS + head) * K, HEADS * K, tokens),
    )
    total = chunk_sums(log_g, at, chunk, HEADS, LOWEST, GATED, CHANNELS)
    if CORRECTS:
        keys = load_shared(k, at, chunk, heads, channels, K).to(PRODUCTS)
        rates = tl.load(beta + (start + at) * HEADS + head, here, 0).to(tl.float32)
        system = chunk_scores(keys, keys, total, gates, LEVELS, GATED, CHANNELS, DIGITS)
        inverse = inverse_below(system * rates[None, :], LEVELS, DIGITS)
        inverse = as_operand(inverse, inverse.dtype, PRECISION)
        square = at[:, None] * C + at[None, :]
        tl.store(inverses + place * C * C + square, inverse.to(inverses.dtype.element_ty))

    # Once more, which spares their registers until now.
    keys = load_shared(k, at, chunk, heads, channels, K).to(dtype)
    read = keys
    left = keys
    if GATED:
        from_start, to_end, whole = boundary_decays(at, total, gates, channels, CHANNELS)
        tl.store(wholes + (place * K + channels if CHANNELS else place), whole)
        read = keys * from_start
        left = keys * to_end
    of_key = place * C * K + at[:, None] * K + channels[None, :]
    if CORRECTS:
        tl.store(reads + of_key, as_operand(-read.to(tl.float32), dtype, PRECISION))
        left = solve_transposed(inverse, left * rates[:, None], DIGITS)
    tl.store(kept + of_key, as_operand(left, dtype, PRECISION))
