"""Gradients of values and rates, and what was written, from the states on both sides of a chunk."""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.gates import decay_between, head_sums
from zoo.kernels.delta.triton.prepare import solve, solve_transposed
from zoo.kernels.delta.triton.scores import channel_scores
from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["value_gradient_kernel"]


@triton.jit(do_not_specialize=["T"])
def value_gradient_kernel(
    q, k, v, do, log_g, sums, beta, inverses, states, dstates, dv, written, dbeta, bounds, T, scale,
    Q_HEADS, K_HEADS, HEADS,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
    LOWEST: tl.constexpr, GATED: tl.constexpr, CHANNELS: tl.constexpr, CORRECTS: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dv `[B T, Hv, V]`, and, if it CORRECTS, what was written `u = beta e` of that shape and dbeta `[B T, Hv]`.

    From what the forward pass takes and keeps, do, and gradients of states after chunks `[slots, Hv, K, V]`. dv is also
    the gradient dr of what errors follow from, `dr = (1 + A)^-T beta du`, and that of a rate is `(du - A_0^T dr) . e`,
    where `A = A_0 beta`. A program takes one chunk and value head, BLOCK values at a time.
    """
    scale = tl.cast(scale, tl.float32)
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    if tokens == 0:
        return
    place = slot * HEADS + head
    dtype: tl.constexpr = states.dtype.element_ty
    at, channels = tl.arange(0, C), tl.arange(0, K)
    here = at < tokens
    row, column = at[:, None], at[None, :]
    q += start * Q_HEADS * K + head * Q_HEADS // HEADS * K
    k += start * K_HEADS * K + head * K_HEADS // HEADS * K
    queries = tl.load(q + row * Q_HEADS * K + channels[None, :], here[:, None], 0).to(dtype)
    keys = tl.load(k + row * K_HEADS * K + channels[None, :], here[:, None], 0).to(dtype)

    read_scale = 1.0  # from the chunk's start, and to its end, of products, where gates are a head's
    kept_scale = 1.0
    read = keys
    kept = keys
    if CHANNELS:
        sums += (start * HEADS + head) * K
        gates = (sums, HEADS * K, tokens)
        scores = channel_scores(queries, keys, gates, LEVELS, PRECISION)
        if CORRECTS:
            met = channel_scores(keys, keys, gates, LEVELS, PRECISION)
        total = tl.load(sums + row * HEADS * K + channels[None, :], here[:, None], 0)
        end = tl.load(sums + (tokens - 1) * HEADS * K + channels)
        read = as_operand(keys * tl.exp2(total.to(tl.float32)), dtype, PRECISION)
        kept = as_operand(keys * tl.exp2((end[None, :] - total).to(tl.float32)), dtype, PRECISION)
    else:
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        if CORRECTS:
            met = tl.dot(keys, tl.trans(keys), input_precision=PRECISION)
        if GATED:
            total = head_sums(log_g + start * HEADS + head, at, here, HEADS, LOWEST)
            end = tl.sum(tl.where(at == C - 1, total, 0), 0)
            read_scale = tl.exp2(total.to(tl.float32))[:, None]
            kept_scale = tl.exp2((end - total).to(tl.float32))[:, None]
            decay = decay_between(total)
            scores *= decay
            if CORRECTS:
                met *= decay
    scores = tl.trans(as_operand(tl.where(row >= column, scores, 0.0), dtype, PRECISION))
    if CORRECTS:
        met = tl.trans(as_operand(tl.where(row > column, met, 0.0), dtype, PRECISION))
        rates = tl.load(beta + (start + at) * HEADS + head, here, 0).to(tl.float32)[:, None]
        inverse = tl.load(inverses + place * C * C + row * C + column)
        drates = tl.zeros((C,), tl.float32)
    for block in tl.static_range(V // BLOCK):
        values = block * BLOCK + tl.arange(0, BLOCK)
        of_token = (start * HEADS + head) * V + row * HEADS * V + values[None, :]
        of_state = place * K * V + channels[:, None] * V + values[None, :]
        dy = tl.load(do + of_token, here[:, None], 0).to(dtype)
        dvalue = kept_scale * tl.dot(kept, tl.load(dstates + of_state), input_precision=PRECISION)
        dvalue += scale * tl.dot(scores, dy, input_precision=PRECISION)
        if CORRECTS:
            value = tl.load(v + of_token, here[:, None], 0).to(tl.float32)
            error = value - read_scale * tl.dot(read, tl.load(states + of_state), input_precision=PRECISION)
            error = solve(inverse, error, PRECISION)
            tl.store(written + of_token, as_operand(error * rates, dtype, PRECISION), here[:, None])
            dwritten = dvalue
            dvalue = solve_transposed(inverse, rates * dwritten, PRECISION)
            dwritten -= tl.dot(met, as_operand(dvalue, dtype, PRECISION), input_precision=PRECISION)
            drates += tl.sum(dwritten * error, 1)
        tl.store(dv + of_token, as_operand(dvalue, dtype, PRECISION), here[:, None])
    if CORRECTS:
        tl.store(dbeta + (start + at) * HEADS + head, drates.to(dbeta.dtype.element_ty), here)
