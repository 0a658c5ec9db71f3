"""Gradient of the values."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.decay import decay
from zoo.kernels.power.triton.from_state import add_lower_outputs, add_outputs
from zoo.kernels.power.triton.monomials import power
from zoo.kernels.power.triton.operands import as_operand
from zoo.kernels.power.triton.program import locate

__all__ = ["value_gradient_kernel"]


@triton.jit(do_not_specialize=["T", "BLOCKS", "Q_HEADS", "K_HEADS", "STATES", "OUTPUTS"])
def value_gradient_kernel(
    q, k, k_columns, do, factors, gates, gates_low, dstates, given, dv, offset, bounds,
    T, C, rows,
    Q_HEADS, K_HEADS, STATES, OUTPUTS, BLOCKS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr, QUERIES: tl.constexpr, GATED: tl.constexpr, EXACT_GATES: tl.constexpr,
    HAS_STATES: tl.constexpr, GIVEN: tl.constexpr, OFFSET: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dv `[B T, Hs, V]`; arguments as in `key_gradient_kernel`."""
    part, _, state, slot, start, tokens, _ = locate(BLOCKS, 1, STATES, T, C, bounds, PACKED)
    token = part * BLOCK
    if token >= tokens:
        return
    q += start * Q_HEADS * K
    k += start * K_HEADS * K + state * K_HEADS // STATES * K
    k_columns += (slot * K_HEADS + state * K_HEADS // STATES) * K * C
    do += start * OUTPUTS * V
    factors += slot * OUTPUTS * C
    dv += (start * STATES + state) * V
    gates += (slot * STATES + state) * C
    gates_low += (slot * STATES + state) * C
    dtype = do.dtype.element_ty

    here = token + tl.arange(0, BLOCK)
    last = tl.minimum(token + BLOCK, tokens) - 1
    at = tl.minimum(here, tokens - 1) * K_HEADS * K
    channel, value, queries = tl.arange(0, K), tl.arange(0, V), tl.arange(0, QUERIES)
    result = tl.zeros((BLOCK, V), tl.float32)
    if HAS_STATES:
        dstates += (slot * STATES + state) * rows * (V + 1)
        if OFFSET:  # first, while there is room in registers
            tl.static_assert(not GIVEN)
            tile = tl.load(k + at[:, None] + channel[None, :]).to(dtype)
            nothing = tl.zeros((BLOCK,), tl.float32)
            # Gradients of states have the offset in them already.
            result, nothing = add_lower_outputs(result, nothing, tile, 1.0, 1.0, dstates, rows, P, False, PRECISION)
        if GIVEN:
            given += (start * STATES + state) * V
            exist = (here < tokens)[:, None]
            result = tl.load(given + here[:, None] * STATES * V + value[None, :], exist, 0)
        else:
            after = (dstates, dstates, 1)
            result = add_outputs(result, (k, at, k_columns, here, C), after, K, P, dtype, PRECISION)
        if GATED:
            result *= decay(gates, gates_low, C - 1, last, EXACT_GATES)

    keys = tl.load(k + at[:, None] + channel[None, :]).to(dtype)
    group = OUTPUTS // STATES
    for head in range(state * group, (state + 1) * group):
        q_head = q + head * Q_HEADS // OUTPUTS * K
        if OFFSET:
            beta = tl.load(offset + head * Q_HEADS // OUTPUTS)
        for first in range(token + BLOCK, tokens, QUERIES):
            there = first + queries
            rows_there = tl.minimum(there, tokens - 1)
            query = tl.load(q_head + rows_there[:, None] * Q_HEADS * K + channel[None, :]).to(dtype)
            do_there = tl.load(do + (rows_there * OUTPUTS + head)[:, None] * V + value[None, :]).to(dtype)
            weight = tl.load(factors + head * C + there)
            if GATED:
                weight *= decay(gates, gates_low, there, last, EXACT_GATES)
            scores = tl.dot(keys, tl.trans(query), input_precision=PRECISION)
            if OFFSET:
                scores += beta
            scores = power(scores, P)
            scores = as_operand(scores * weight[None, :], dtype, PRECISION)
            result = tl.dot(scores, do_there, result, input_precision=PRECISION)
    if GATED:
        result *= decay(gates, gates_low, last, here, EXACT_GATES)[:, None]
    for head in range(state * group, (state + 1) * group):
        q_head = q + head * Q_HEADS // OUTPUTS * K
        if OFFSET:
            beta = tl.load(offset + head * Q_HEADS // OUTPUTS)
        for first in range(token, tl.minimum(token + BLOCK, tokens), QUERIES):
            there = first + queries
            rows_there = tl.minimum(there, tokens - 1)
            query = tl.load(q_head + rows_there[:, None] * Q_HEADS * K + channel[None, :]).to(dtype)
            do_there = tl.load(do + (rows_there * OUTPUTS + head)[:, None] * V + value[None, :]).to(dtype)
            scores = tl.dot(keys, tl.trans(query), input_precision=PRECISION)
            if OFFSET:
                scores += beta
            scores = power(scores, P)
            if GATED:
                scores *= decay(gates, gates_low, there[None, :], here[:, None], EXACT_GATES)
            scores *= tl.load(factors + head * C + there)[None, :]
            scores = tl.where(here[:, None] <= there[None, :], scores, 0.0)
            result = tl.dot(as_operand(scores, dtype, PRECISION), do_there, result, input_precision=PRECISION)

    out = dv + here[:, None] * STATES * V + value[None, :]
    tl.store(out, result.to(dv.dtype.element_ty), (here < tokens)[:, None])
