"""Gradient of the queries."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.decay import decay, small_power
from zoo.kernels.power.triton.from_state import add_gradients, lower_products, normaliser_gradients
from zoo.kernels.power.triton.monomials import power
from zoo.kernels.power.triton.operands import as_operand
from zoo.kernels.power.triton.program import load_keys, locate, start_of_keys

__all__ = ["query_gradient_kernel"]


@triton.jit(do_not_specialize=["T", "BLOCKS", "SLOTS", "Q_HEADS", "K_HEADS", "V_HEADS", "STATES", "OUTPUTS"])
def query_gradient_kernel(
    q, q_columns, keys, v, do, delta, factors, gates, gates_low, states, given, dq, along, offset, bounds,
    T, C, rows, Q_HEADS, K_HEADS, V_HEADS, STATES, OUTPUTS, BLOCKS, SLOTS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, BLOCK: tl.constexpr,
    KEYS: tl.constexpr, NORMALIZE: tl.constexpr, GATED: tl.constexpr, EXACT_GATES: tl.constexpr,
    HAS_STATES: tl.constexpr, GIVEN: tl.constexpr, HAS_INITIAL: tl.constexpr, OFFSET: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq `[B T, Ho, K]`, and along `[2, slots, Ho, C]`, its product with q divided by p: the chunk's part, the states'.

    The gradients of numerator and denominator are do `[B T, Ho, V]` and, if NORMALIZE, -delta `[slots, Ho, C]` times
    factors `[slots, Ho, C]`; the rest as in `output_kernel`, what is GIVEN `[B T, Ho, K]` by the states among it. If
    OFFSET, along has one plane more, what tokens give to the gradient of their offset.
    """
    part, _, head, slot, start, tokens, place = locate(BLOCKS, 1, OUTPUTS, T, C, bounds, PACKED)
    token = part * BLOCK
    if token >= tokens:
        return
    state = head // (OUTPUTS // STATES)
    q += start * Q_HEADS * K + head * Q_HEADS // OUTPUTS * K
    q_columns += (slot * Q_HEADS + head * Q_HEADS // OUTPUTS) * K * C
    keys = start_of_keys(keys, start, slot, state * K_HEADS // STATES, K_HEADS, C, K, P)
    v += start * V_HEADS * V + state * V_HEADS // STATES * V
    do += (start * OUTPUTS + head) * V
    delta += (slot * OUTPUTS + head) * C
    dq += (start * OUTPUTS + head) * K
    gates += (slot * STATES + state) * C
    gates_low += (slot * STATES + state) * C
    dtype = do.dtype.element_ty

    here = token + tl.arange(0, BLOCK)
    existing = tl.minimum(here, tokens - 1)
    at = existing * Q_HEADS * K
    channel, values, number = tl.arange(0, K), tl.arange(0, V), tl.arange(0, KEYS)
    do_here = tl.load(do + existing[:, None] * OUTPUTS * V + values[None, :]).to(dtype)
    # Places of existing tokens, here and of factors: from those of all the compiler makes another layout, and spills.
    delta_here = tl.load(delta + existing) if NORMALIZE else tl.zeros((BLOCK,), tl.float32)
    queries = tl.load(q + at[:, None] + channel[None, :]).to(dtype)
    result = tl.zeros((BLOCK, K), tl.float32)
    q_dot_dq, q_dot_dq_of_states = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if OFFSET:
        beta = tl.load(offset + head * Q_HEADS // OUTPUTS)
        dbeta, dbeta_of_states = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if HAS_STATES:
        count = 1 if HAS_INITIAL else tl.minimum(place, 1)
        states += (slot * STATES + state) * rows * (V + 1)
        vectors = (q, at, q_columns, here, C)
        before = (states, states + rows * V, count)
        if NORMALIZE and P <= 2:  # beyond that it is among what is given
            result = normaliser_gradients(vectors, -delta_here, before, K, P, INNER, dtype, PRECISION)
        if GIVEN:
            given += (start * OUTPUTS + head) * K
            exist = ((here < tokens) & (count > 0))[:, None]
            result += tl.load(given + here[:, None] * OUTPUTS * K + channel[None, :], exist, 0)
        else:
            result = add_gradients(result, do_here, vectors, before, K, P, PRECISION)
        if OFFSET:
            linear, constant = lower_products(do_here, -delta_here, states, rows, K, P, NORMALIZE, PRECISION)
            # Over P, like the result: beta^2 and 2 beta x have the derivatives 2 beta and 2 x, and beta has 1.
            dbeta_of_states = constant * count
            if P == 2:
                dbeta_of_states = (beta * constant + tl.sum(linear * queries.to(tl.float32), 1)) * count
                result += beta * count * linear
        if GATED:
            from_start = tl.exp2(tl.load(gates + token))
            if EXACT_GATES:
                from_start *= small_power(tl.load(gates_low + token))
            result *= from_start
            q_dot_dq_of_states = tl.sum(result * queries.to(tl.float32), 1)
            if OFFSET:
                dbeta_of_states *= from_start
                q_dot_dq_of_states += beta * dbeta_of_states

    for first in range(0, token, KEYS):
        there = first + number
        columns = load_keys(keys, there, tokens, K_HEADS, C, K, P, dtype)
        block = tl.load(v + there[:, None] * V_HEADS * V + values[None, :]).to(dtype)
        dscores = tl.dot(do_here, tl.trans(block), input_precision=PRECISION) - delta_here[:, None]
        if P > 1 or GATED:
            scores = tl.dot(queries, columns, input_precision=PRECISION)
            if OFFSET:
                scores += beta
        if P > 1:
            dscores *= power(scores, P - 1)
        if GATED:
            dscores *= decay(gates, gates_low, token, there, EXACT_GATES)[None, :]
            q_dot_dq += tl.sum(dscores * scores, 1)
        if OFFSET:
            dbeta += tl.sum(dscores, 1)
        dscores = as_operand(dscores, dtype, PRECISION)
        result = tl.dot(dscores, tl.trans(columns), result, input_precision=PRECISION)
    if GATED:
        from_token = decay(gates, gates_low, here, token, EXACT_GATES)
        if OFFSET:
            dbeta *= from_token
            dbeta_of_states *= from_token
        result *= from_token[:, None]
        q_dot_dq *= from_token
        q_dot_dq_of_states *= from_token
    for first in range(token, tl.minimum(token + BLOCK, tokens), KEYS):
        there = first + number
        columns = load_keys(keys, there, tokens, K_HEADS, C, K, P, dtype)
        block = tl.load(v + tl.minimum(there, tokens - 1)[:, None] * V_HEADS * V + values[None, :]).to(dtype)
        dscores = tl.dot(do_here, tl.trans(block), input_precision=PRECISION) - delta_here[:, None]
        if P > 1 or GATED:
            scores = tl.dot(queries, columns, input_precision=PRECISION)
            if OFFSET:
                scores += beta
        if P > 1:
            dscores *= power(scores, P - 1)
        if GATED:
            dscores *= decay(gates, gates_low, here[:, None], there[None, :], EXACT_GATES)
        dscores = tl.where(here[:, None] >= there[None, :], dscores, 0.0)
        if GATED:
            q_dot_dq += tl.sum(dscores * scores, 1)
        if OFFSET:
            dbeta += tl.sum(dscores, 1)
        dscores = as_operand(dscores, dtype, PRECISION)
        result = tl.dot(dscores, tl.trans(columns), result, input_precision=PRECISION)

    factor = tl.load(factors + (slot * OUTPUTS + head) * C + existing)
    # Weights are homogeneous of degree P in q.
    result *= P * factor[:, None]
    exists = here < tokens
    out = dq + here[:, None] * OUTPUTS * K + channel[None, :]
    tl.store(out, result.to(dq.dtype.element_ty), exists[:, None])
    along += here
    if GATED:
        tl.store(along + (slot * OUTPUTS + head) * C, tl.where(exists, q_dot_dq * factor, 0.0))
        tl.store(along + ((slot + SLOTS) * OUTPUTS + head) * C, tl.where(exists, q_dot_dq_of_states * factor, 0.0))
    if OFFSET:
        dbeta = P * factor * (dbeta + dbeta_of_states)
        tl.store(along + ((slot + 2 * SLOTS) * OUTPUTS + head) * C, dbeta, exists)
