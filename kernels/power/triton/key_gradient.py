"""Gradient of the keys."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.decay import decay
from zoo.kernels.power.triton.from_state import add_gradients, lower_products, normaliser_gradients
from zoo.kernels.power.triton.monomials import power
from zoo.kernels.power.triton.operands import as_operand
from zoo.kernels.power.triton.program import locate

__all__ = ["key_gradient_kernel"]


@triton.jit(do_not_specialize=["T", "BLOCKS", "SLOTS", "Q_HEADS", "K_HEADS", "V_HEADS", "STATES", "OUTPUTS"])
def key_gradient_kernel(
    q, k, k_columns, v, do, delta, factors, gates, gates_low, dstates, given, dk, along, offset, bounds,
    T, C, rows, Q_HEADS, K_HEADS, V_HEADS, STATES, OUTPUTS, BLOCKS, SLOTS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, BLOCK: tl.constexpr,
    QUERIES: tl.constexpr, NORMALIZE: tl.constexpr, HAS_NORMALISER: tl.constexpr,
    GATED: tl.constexpr, EXACT_GATES: tl.constexpr, HAS_STATES: tl.constexpr, GIVEN: tl.constexpr, OFFSET: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk `[B T, Hs, K]`, and along `[2, slots, Hs, C]`, its product with k divided by p: the chunk's part, the states'.

    dstates `[slots, Hs, rows (V + 1)]` are the gradients of the states at the chunks' ends, whose z counts where
    HAS_NORMALISER; the rest as in `query_gradient_kernel`, where along has no plane more.
    """
    part, _, state, slot, start, tokens, _ = locate(BLOCKS, 1, STATES, T, C, bounds, PACKED)
    token = part * BLOCK
    if token >= tokens:
        return
    q += start * Q_HEADS * K
    k += start * K_HEADS * K + state * K_HEADS // STATES * K
    k_columns += (slot * K_HEADS + state * K_HEADS // STATES) * K * C
    v += start * V_HEADS * V + state * V_HEADS // STATES * V
    do += start * OUTPUTS * V
    delta += slot * OUTPUTS * C
    factors += slot * OUTPUTS * C
    dk += (start * STATES + state) * K
    gates += (slot * STATES + state) * C
    gates_low += (slot * STATES + state) * C
    dtype = do.dtype.element_ty

    here = token + tl.arange(0, BLOCK)
    last = tl.minimum(token + BLOCK, tokens) - 1
    existing = tl.minimum(here, tokens - 1)
    at = existing * K_HEADS * K
    channel, value, queries = tl.arange(0, K), tl.arange(0, V), tl.arange(0, QUERIES)
    values = tl.load(v + existing[:, None] * V_HEADS * V + value[None, :]).to(dtype)
    keys = tl.load(k + at[:, None] + channel[None, :]).to(dtype)
    result = tl.zeros((BLOCK, K), tl.float32)
    k_dot_dk, k_dot_dk_of_states = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if HAS_STATES:
        dstates += (slot * STATES + state) * rows * (V + 1)
        vectors = (k, at, k_columns, here, C)
        after = (dstates, dstates + rows * V, 1)
        if HAS_NORMALISER and P <= 2:  # beyond that it is among what is given
            ones = tl.full((BLOCK,), 1.0, tl.float32)
            result = normaliser_gradients(vectors, ones, after, K, P, INNER, dtype, PRECISION)
        if OFFSET:  # first, while there is room in registers
            one = tl.full((BLOCK,), 1.0, tl.float32)
            linear, constant = lower_products(values, one, dstates, rows, K, P, HAS_NORMALISER, PRECISION)
            if P == 2:  # over P, like the result; k has half of what it gives along itself already there
                result += 0.5 * linear
                constant += 0.5 * tl.sum(linear * keys.to(tl.float32), 1)
        if GIVEN:
            given += (start * STATES + state) * K
            exist = (here < tokens)[:, None]
            result += tl.load(given + here[:, None] * STATES * K + channel[None, :], exist, 0)
        else:
            result = add_gradients(result, values, vectors, after, K, P, PRECISION)
        if GATED:
            to_end = decay(gates, gates_low, C - 1, last, EXACT_GATES)
            result *= to_end
            k_dot_dk_of_states = tl.sum(result * keys.to(tl.float32), 1)
            if OFFSET:
                k_dot_dk_of_states += constant * to_end

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
            dscores = tl.dot(values, tl.trans(do_there), input_precision=PRECISION)
            if NORMALIZE:
                dscores -= tl.load(delta + head * C + there)[None, :]
            if P > 1 or GATED:
                scores = tl.dot(keys, tl.trans(query), input_precision=PRECISION)
                if OFFSET:
                    scores += beta
            if P > 1:
                dscores *= power(scores, P - 1)
            dscores *= weight[None, :]
            if GATED:
                k_dot_dk += tl.sum(dscores * scores, 1)
            dscores = as_operand(dscores, dtype, PRECISION)
            result = tl.dot(dscores, query, result, input_precision=PRECISION)
    if GATED:
        to_last = decay(gates, gates_low, last, here, EXACT_GATES)
        result *= to_last[:, None]
        k_dot_dk *= to_last
        k_dot_dk_of_states *= to_last
    for head in range(state * group, (state + 1) * group):
        q_head = q + head * Q_HEADS // OUTPUTS * K
        if OFFSET:
            beta = tl.load(offset + head * Q_HEADS // OUTPUTS)
        for first in range(token, tl.minimum(token + BLOCK, tokens), QUERIES):
            there = first + queries
            rows_there = tl.minimum(there, tokens - 1)
            query = tl.load(q_head + rows_there[:, None] * Q_HEADS * K + channel[None, :]).to(dtype)
            do_there = tl.load(do + (rows_there * OUTPUTS + head)[:, None] * V + value[None, :]).to(dtype)
            dscores = tl.dot(values, tl.trans(do_there), input_precision=PRECISION)
            if NORMALIZE:
                dscores -= tl.load(delta + head * C + there)[None, :]
            if P > 1 or GATED:
                scores = tl.dot(keys, tl.trans(query), input_precision=PRECISION)
                if OFFSET:
                    scores += beta
            if P > 1:
                dscores *= power(scores, P - 1)
            if GATED:
                dscores *= decay(gates, gates_low, there[None, :], here[:, None], EXACT_GATES)
            dscores *= tl.load(factors + head * C + there)[None, :]
            dscores = tl.where(here[:, None] <= there[None, :], dscores, 0.0)
            if GATED:
                k_dot_dk += tl.sum(dscores * scores, 1)
            dscores = as_operand(dscores, dtype, PRECISION)
            result = tl.dot(dscores, query, result, input_precision=PRECISION)

    # Weights are homogeneous of degree P in k.
    result *= P
    exists = here < tokens
    out = dk + here[:, None] * STATES * K + channel[None, :]
    tl.store(out, result.to(dk.dtype.element_ty), exists[:, None])
    if GATED:
        along += here
        tl.store(along + (slot * STATES + state) * C, tl.where(exists, k_dot_dk, 0.0))
        tl.store(along + ((slot + SLOTS) * STATES + state) * C, tl.where(exists, k_dot_dk_of_states, 0.0))
