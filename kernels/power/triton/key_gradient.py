"""Gradients of keys and values."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.decay import decay
from zoo.kernels.power.triton.gradient import load_tile, normaliser_gradient
from zoo.kernels.power.triton.monomials import outer_count, outer_scalars, power

__all__ = ["key_gradient_kernel"]


@triton.jit
def _from_state(
    dkeys, dvalues, keys, values, k, at, dstates, channels, symmetric, weights, gradient_weights, outers, rows,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, OUTERS: tl.constexpr, WHOLE: tl.constexpr,
    NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the state's gradient gives to dkeys `[BLOCK, K]` and dvalues `[BLOCK, V]`."""
    all_outers = outer_count(K, P)
    following = outer_scalars(k, at, 1, channels, gradient_weights, 0, outers, P)
    for outer in range(0, all_outers):
        tile = load_tile(dstates, symmetric, outer, K, V, WHOLE)
        scalars = following.to(keys.dtype)
        following = outer_scalars(
            k, at, 1, channels, gradient_weights, tl.minimum(outer + 1, all_outers - 1), outers, P
        )
        scaled = values if P == 1 else values * scalars[:, None]
        dkeys = tl.dot(scaled, tl.trans(tile), dkeys, input_precision=PRECISION)
        if WHOLE:
            scaled = keys if P == 1 else keys * scalars[:, None]
            dvalues = tl.dot(scaled, tile, dvalues, input_precision=PRECISION)
    if not WHOLE:
        inners, value = tl.arange(0, INNER), tl.arange(0, V)
        base = 0
        for inner in tl.static_range(K // INNER):
            prefix = outer_count((inner + 1) * INNER, P)
            block = tl.load(k + at[:, None] + (inner * INNER + inners)[None, :]).to(keys.dtype)
            for outer in range(0, prefix):
                tile = tl.load(dstates + (base + outer * INNER + inners)[:, None] * V + value[None, :])
                scalars = outer_scalars(k, at, 1, channels, weights + inner * outers, outer, outers, P)
                scaled = block * scalars.to(block.dtype)[:, None]
                dvalues = tl.dot(scaled, tile, dvalues, input_precision=PRECISION)
            base += prefix * INNER
    if NORMALIZE:
        ones = tl.zeros((keys.shape[0],), tl.float32) + 1.0
        dkeys = normaliser_gradient(
            dkeys, k, at, ones, dstates + rows * V, channels, symmetric, gradient_weights, outers, 1,
            K, P, OUTERS, WHOLE, PRECISION,
        )  # fmt: skip
    return dkeys, dvalues


@triton.jit(do_not_specialize=["T"])
def key_gradient_kernel(
    q, k, v, dy, dtotal, gates, gates_low, dstates, dk, dv, along, bounds,
    channels, symmetric, weights, gradient_weights, T, C, outers, rows, scale,
    Q_HEADS, K_HEADS, V_HEADS, STATES, OUTPUTS, BLOCKS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, OUTERS: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK: tl.constexpr, QUERIES: tl.constexpr, NORMALIZE: tl.constexpr, HAS_NORMALISER: tl.constexpr,
    GATED: tl.constexpr, EXACT_GATES: tl.constexpr,
    HAS_STATES: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """dk `[B T, Hs, K]`, dv `[B T, Hs, V]`, and along `[slots, Hs, C]`, the product of dk with k divided by p.

    dstates `[slots, Hs, rows (V + 1)]` are the gradients of the states at the chunks' ends.
    """
    program = tl.program_id(0)
    token = program % BLOCKS * BLOCK
    state = program // BLOCKS % STATES
    slot = (program // (BLOCKS * STATES)).to(tl.int64)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    if token >= tokens:
        return
    q += start * Q_HEADS * K
    k += start * K_HEADS * K + state * K_HEADS // STATES * K
    v += start * V_HEADS * V + state * V_HEADS // STATES * V
    dy += start * OUTPUTS * V
    dtotal += start * OUTPUTS
    dk += (start * STATES + state) * K
    dv += (start * STATES + state) * V
    gates += (slot * STATES + state) * C
    gates_low += (slot * STATES + state) * C

    here = token + tl.arange(0, BLOCK)
    existing = tl.minimum(here, tokens - 1)
    at = existing * K_HEADS * K
    channel, value, queries = tl.arange(0, K), tl.arange(0, V), tl.arange(0, QUERIES)
    last = tl.minimum(token + BLOCK, tokens) - 1
    keys = tl.load(k + at[:, None] + channel[None, :]).to(DTYPE)
    values = tl.load(v + existing[:, None] * V_HEADS * V + value[None, :]).to(DTYPE)
    dkeys = tl.zeros((BLOCK, K), tl.float32)
    dvalues = tl.zeros((BLOCK, V), tl.float32)
    if HAS_STATES:
        dstates += (slot * STATES + state) * rows * (V + 1)
        dkeys, dvalues = _from_state(
            dkeys, dvalues, keys, values, k, at, dstates, channels, symmetric, weights, gradient_weights, outers, rows,
            K, V, P, INNER, OUTERS, WHOLE, HAS_NORMALISER, PRECISION,
        )  # fmt: skip
        if GATED:
            to_end = decay(gates, gates_low, C - 1, last, EXACT_GATES)
            dkeys *= to_end
            dvalues *= to_end

    group = OUTPUTS // STATES
    for head in range(state * group, (state + 1) * group):
        q_head = q + head * Q_HEADS // OUTPUTS * K
        for first in range(token + BLOCK, tokens, QUERIES):
            there = first + queries
            rows_there = tl.minimum(there, tokens - 1)
            query = tl.load(q_head + rows_there[:, None] * Q_HEADS * K + channel[None, :]).to(DTYPE)
            dy_there = tl.load(dy + (rows_there * OUTPUTS + head)[:, None] * V + value[None, :]).to(DTYPE)
            left = tl.where(there < tokens, scale, 0.0)
            if GATED:
                left *= decay(gates, gates_low, there, last, EXACT_GATES)
            scores = tl.dot(keys, tl.trans(query), input_precision=PRECISION)
            dscores = tl.dot(values, tl.trans(dy_there), input_precision=PRECISION)
            if NORMALIZE:
                dscores += tl.load(dtotal + rows_there * OUTPUTS + head)[None, :]
            lower = power(scores, P - 1) * left[None, :]
            dvalues = tl.dot((lower * scores).to(DTYPE), dy_there, dvalues, input_precision=PRECISION)
            dkeys = tl.dot((lower * dscores).to(DTYPE), query, dkeys, input_precision=PRECISION)
    if GATED:
        to_last = decay(gates, gates_low, last, here, EXACT_GATES)[:, None]
        dkeys *= to_last
        dvalues *= to_last
    for head in range(state * group, (state + 1) * group):
        q_head = q + head * Q_HEADS // OUTPUTS * K
        for first in range(token, tl.minimum(token + BLOCK, tokens), QUERIES):
            there = first + queries
            rows_there = tl.minimum(there, tokens - 1)
            query = tl.load(q_head + rows_there[:, None] * Q_HEADS * K + channel[None, :]).to(DTYPE)
            dy_there = tl.load(dy + (rows_there * OUTPUTS + head)[:, None] * V + value[None, :]).to(DTYPE)
            scores = tl.dot(keys, tl.trans(query), input_precision=PRECISION)
            dscores = tl.dot(values, tl.trans(dy_there), input_precision=PRECISION)
            if NORMALIZE:
                dscores += tl.load(dtotal + rows_there * OUTPUTS + head)[None, :]
            causal = (here[:, None] <= there[None, :]) & (there < tokens)[None, :]
            lower = tl.where(causal, power(scores, P - 1) * scale, 0.0)
            if GATED:
                lower *= decay(gates, gates_low, there[None, :], here[:, None], EXACT_GATES)
            dvalues = tl.dot((lower * scores).to(DTYPE), dy_there, dvalues, input_precision=PRECISION)
            dkeys = tl.dot((lower * dscores).to(DTYPE), query, dkeys, input_precision=PRECISION)

    # Weights are homogeneous of degree P in k.
    dkeys *= P
    exists = here < tokens
    tl.store(dk + here[:, None] * STATES * K + channel[None, :], dkeys.to(dk.dtype.element_ty), exists[:, None])
    tl.store(dv + here[:, None] * STATES * V + value[None, :], dvalues.to(dv.dtype.element_ty), exists[:, None])
    if GATED:
        product = tl.sum(dkeys * keys.to(tl.float32), 1) / P
        tl.store(along + (slot * STATES + state) * C + here, tl.where(exists, product, 0.0))
