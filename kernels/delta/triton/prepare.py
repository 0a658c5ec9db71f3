"""What a chunk does with the state before it, whatever that is.

With what a chunk did not know, `r = v - (k exp(G)) S`, and `A_ij = exp(G_i - G_j) (k_i . k_j) beta_j` for j < i, the
errors of its tokens are `e = (1 + A)^-1 r`. They are written as `S_end = decay S + k^T (beta exp(G_C - G) e)`, and
read as `o = (q exp(G)) S + W e`, where `W = P beta` and P is what queries read of keys. So the state changes where
keys point to, and nowhere else: a map `k^T beta (1 + A)^-1`, once rounded, is no longer along the keys, and what it
writes beside those that are written again and again nothing takes away, so that it adds up with the length. Where keys
are alike columns of the inverse cancel, and near a rate of two an error in them grows from chunk to chunk: it has two
parts of bfloat16.
"""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.chunk import boundary_decays, chunk_scores, chunk_sums, load_shared
from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["inverse_below", "prepare_kernel", "solve", "solve_transposed"]


@triton.jit
def inverse_below(system, LEVELS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """`(1 + system)^-1`, of what lies below the diagonal of `system [C, C]`, float32 or float64, by products of DTYPE.

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
        block = as_operand(tl.where(between, system, 0.0), DTYPE, PRECISION)
        inverted = as_operand(inverse, DTYPE, PRECISION)
        found = as_operand(tl.dot(block, inverted, input_precision=PRECISION), DTYPE, PRECISION)
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
    q, k, log_g, sums, beta, weights, inverses, queries, reads, kept, decays, written, bounds, T, scale, Q_HEADS,
    K_HEADS, HEADS,
    C: tl.constexpr, K: tl.constexpr, LEVELS: tl.constexpr, LOWEST: tl.constexpr,
    GATED: tl.constexpr, CHANNELS: tl.constexpr, CORRECTS: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """weights `W [slots, Hv, C, C]` of what is written; if it CORRECTS inverses `(1 + A)^-1` as sums of PARTS,
    `[slots, Hv, PARTS, C, C]`. If GATED decays from a chunk's start to each of its tokens, `[slots, Hv, C]`; and of the
    same shape factors on errors where they are written, written. Where CHANNELS have gates queries `scale q exp(G)`,
    reads `-k exp(G)` and kept `k exp(G_C - G)`, all `[slots, Hv, C, K]`, and decays of the whole chunk
    `[slots, Hv, K]`.

    From q and k `[B T, Hq or Hk, K]`, beta `[B T, Hv]`, if it CORRECTS, and, if GATED, log_g `[B T, Hv]` or channels'
    sums of gates `[B T, Hv, K]`. A program takes one chunk and value head.

    EXACT: in float64 until it is stored. A product with an equal key, once rounded, is wrong for all pairs alike, and
    tensor cores cut off what PyTorch's float32 products round.
    """
    scale = tl.cast(scale, tl.float32)
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    place = slot * HEADS + head
    dtype: tl.constexpr = weights.dtype.element_ty
    PRODUCTS: tl.constexpr = tl.float64 if EXACT else dtype
    DIGITS: tl.constexpr = "ieee" if EXACT else PRECISION
    at, channels = tl.arange(0, C), tl.arange(0, K)
    here = at < tokens
    chunk, gates = (start, tokens, head), (sums + (start * HEADS + head) * K, HEADS * K, tokens)
    total = chunk_sums(log_g, at, chunk, HEADS, LOWEST, GATED, CHANNELS)
    square = at[:, None] * C + at[None, :]
    if CORRECTS:
        keys = load_shared(k, at, chunk, (K_HEADS, HEADS), channels, K).to(PRODUCTS)
        rates = tl.load(beta + (start + at) * HEADS + head, here, 0).to(tl.float32)
        system = chunk_scores(keys, keys, total, gates, LEVELS, GATED, CHANNELS, DIGITS)
        inverse = inverse_below(system * rates[None, :], LEVELS, system.dtype, DIGITS)
        for part in tl.static_range(PARTS):
            rounded = as_operand(inverse, dtype, PRECISION)
            tl.store(inverses + (place * PARTS + part) * C * C + square, rounded)
            inverse -= rounded

    asking = load_shared(q, at, chunk, (Q_HEADS, HEADS), channels, K).to(PRODUCTS)
    # Once more, which spares their registers until now, and below.
    keys = load_shared(k, at, chunk, (K_HEADS, HEADS), channels, K).to(PRODUCTS)
    weight = scale * chunk_scores(asking, keys, total, gates, LEVELS, GATED, CHANNELS, DIGITS)
    if CORRECTS:
        weight *= rates[None, :]
    tl.store(weights + place * C * C + square, as_operand(weight, dtype, PRECISION))

    if CHANNELS:
        keys = load_shared(k, at, chunk, (K_HEADS, HEADS), channels, K).to(dtype)
        asking = load_shared(q, at, chunk, (Q_HEADS, HEADS), channels, K).to(dtype)
        of_key = place * C * K + at[:, None] * K + channels[None, :]
        from_start, to_end, whole = boundary_decays(at, total, gates, channels, CHANNELS)
        tl.store(decays + place * K + channels, whole)
        tl.store(queries + of_key, as_operand(asking * from_start * scale, dtype, PRECISION))
        tl.store(kept + of_key, as_operand(keys * to_end, dtype, PRECISION))
        if CORRECTS:
            tl.store(reads + of_key, as_operand(keys * -from_start, dtype, PRECISION))
            tl.store(written + place * C + at, rates)
    elif GATED:
        tl.store(decays + place * C + at, tl.exp2(total.to(tl.float32)))
        end = tl.sum(tl.where(at == C - 1, total, 0), 0)
        factor = tl.exp2((end - total).to(tl.float32))
        if CORRECTS:
            factor *= rates
        tl.store(written + place * C + at, factor)
    elif CORRECTS:
        tl.store(written + place * C + at, rates)
