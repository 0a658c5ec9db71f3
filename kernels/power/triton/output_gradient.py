"""The output's gradient in the factors that the backward pass takes, and queries and keys with tokens last.

One launch, and written once: the compiler would prepare anew what each op that is opaque to it reads.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.columns import load_columns, store_columns
from zoo.kernels.power.triton.decay import small_power
from zoo.kernels.power.triton.operands import as_operand, divide
from zoo.kernels.power.triton.output import STEEP

__all__ = ["output_gradient_kernel"]


@triton.jit(do_not_specialize=["T", "Q_HEADS", "K_HEADS"])
def output_gradient_kernel(
    q, k, do, o, denominator, gates, gates_low, factors, delta, queries, weighted, keys, bounds, T, C, scale,
    Q_HEADS, K_HEADS, REPEATS, SHARED,
    K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, NORMALIZE: tl.constexpr, GATED: tl.constexpr,
    EXACT_GATES: tl.constexpr, PLAIN: tl.constexpr, WEIGHTED: tl.constexpr, NUMBERS: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """factors `[slots, Ho, C]`, scale over the denominators `[B T, Ho]`, if NORMALIZE, and zero where they are steep;
    then also delta, `do . o`, both `[B T, Ho, V]`. Zero beyond a chunk's end.

    If PLAIN, queries `[slots, Hq, K, C]` of q `[B T, Hq, K]`. If WEIGHTED, weighted `[slots, Ho, K, C]`, queries times
    their factors and what is left at them of their chunk's start; with NUMBERS, these alone `[slots, Ho, C]`, float32.
    Keys of k as in `columns_kernel`, of which there may be no heads. REPEATS outputs share a query, SHARED a state.
    """
    scale = tl.cast(scale, tl.float32)  # the compiler passes a Python number in float64
    token, slot, head = tl.program_id(0) * BLOCK, tl.program_id(1).to(tl.int64), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    at = token + tl.arange(0, BLOCK)
    if head >= Q_HEADS:
        tile = load_columns(k, start, at, tokens, K_HEADS, head - Q_HEADS, K)
        store_columns(keys, tile, slot * K_HEADS + head - Q_HEADS, at, C, K)
    else:
        if PLAIN or (WEIGHTED and not NUMBERS):
            tile = load_columns(q, start, at, tokens, Q_HEADS, head, K)
        if PLAIN:
            store_columns(queries, tile, slot * Q_HEADS + head, at, C, K)
        exists, inside, value = at < tokens, at < C, tl.arange(0, V)
        OUTPUTS = Q_HEADS * REPEATS
        for output in range(head * REPEATS, (head + 1) * REPEATS):
            row = slot * OUTPUTS + output
            factor = tl.where(exists, scale, 0.0)
            if NORMALIZE:
                place = (start + at) * OUTPUTS + output
                total = tl.load(denominator + place, exists, 1)
                steep = tl.abs(total) < STEEP
                factor = tl.where(steep, 0.0, divide(factor, tl.where(steep, 1.0, total), PRECISION))
                places = place[:, None] * V + value[None, :]
                gradient = tl.load(do + places, exists[:, None], 0).to(tl.float32)
                do_dot_o = tl.sum(gradient * tl.load(o + places, exists[:, None], 0), 1)
                tl.store(delta + row * C + at, do_dot_o, inside)
            tl.store(factors + row * C + at, factor, inside)
            if WEIGHTED:
                if GATED:
                    state = slot * (OUTPUTS // SHARED) + output // SHARED
                    factor *= tl.exp2(tl.load(gates + state * C + at, inside, 0))
                    if EXACT_GATES:
                        factor *= small_power(tl.load(gates_low + state * C + at, inside, 0))
                if NUMBERS:
                    tl.store(weighted + row * C + at, factor, inside)
                else:
                    product = as_operand(tile.to(tl.float32) * factor[None, :], weighted.dtype.element_ty, PRECISION)
                    store_columns(weighted, product, row, at, C, K)
