"""The output: what the state before a chunk and the chunk itself give to each query."""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.gates import decay_between, head_sums
from zoo.kernels.delta.triton.prepare import solve
from zoo.kernels.delta.triton.scores import channel_scores
from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["output_kernel"]


@triton.jit(do_not_specialize=["T"])
def output_kernel(
    q, k, v, log_g, sums, beta, inverses, states, o, errors, bounds, T, scale, Q_HEADS, K_HEADS, HEADS,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
    LOWEST: tl.constexpr, GATED: tl.constexpr, CHANNELS: tl.constexpr, CORRECTS: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr, WANTS_ERRORS: tl.constexpr,
):  # fmt: skip
    """o `[B T, Hv, V]` and, if wanted, errors of that shape, from q `[B T, Hq, K]`, inverses and states before chunks.

    The rest is as in `prepare_kernel`. A program takes BLOCK values of one chunk and value head.
    """
    scale = tl.cast(scale, tl.float32)  # the compiler passes a Python number in float64
    slot, head, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    if tokens == 0:
        return
    place = slot * HEADS + head
    dtype: tl.constexpr = states.dtype.element_ty
    at, channels, values = tl.arange(0, C), tl.arange(0, K), block * BLOCK + tl.arange(0, BLOCK)
    here = at < tokens
    q += start * Q_HEADS * K + head * Q_HEADS // HEADS * K
    k += start * K_HEADS * K + head * K_HEADS // HEADS * K
    queries = tl.load(q + at[:, None] * Q_HEADS * K + channels[None, :], here[:, None], 0).to(dtype)
    keys = tl.load(k + at[:, None] * K_HEADS * K + channels[None, :], here[:, None], 0).to(dtype)
    of_token = (start * HEADS + head) * V + at[:, None] * HEADS * V + values[None, :]

    from_start = 1.0
    if CHANNELS:
        sums += (start * HEADS + head) * K
        gates = (sums, HEADS * K, tokens)
        scores = channel_scores(queries, keys, gates, LEVELS, PRECISION)
        total = tl.load(sums + at[:, None] * HEADS * K + channels[None, :], here[:, None], 0)
        decayed = tl.exp2(total.to(tl.float32))
        queries = as_operand(queries * decayed, dtype, PRECISION)
        keys = as_operand(keys * decayed, dtype, PRECISION)
    else:
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        if GATED:
            total = head_sums(log_g + start * HEADS + head, at, here, HEADS, LOWEST)
            scores *= decay_between(total)
            from_start = tl.exp2(total.to(tl.float32))[:, None]
        scores = tl.where(at[:, None] >= at[None, :], scores, 0.0)
    scores = as_operand(scores, dtype, PRECISION)

    S = tl.load(states + place * K * V + channels[:, None] * V + values[None, :])
    value = tl.load(v + of_token, here[:, None], 0)
    if CORRECTS:
        rates = tl.load(beta + (start + at) * HEADS + head, here, 0).to(tl.float32)
        inverse = tl.load(inverses + place * C * C + at[:, None] * C + at[None, :])
        error = value.to(tl.float32) - from_start * tl.dot(keys, S, input_precision=PRECISION)
        error = solve(inverse, error, PRECISION)
        if WANTS_ERRORS:
            tl.store(errors + of_token, as_operand(error, dtype, PRECISION), here[:, None])
        written = as_operand(error * rates[:, None], dtype, PRECISION)
    else:
        written = value.to(dtype)
    y = from_start * tl.dot(queries, S, input_precision=PRECISION)
    y = tl.dot(scores, written, y, input_precision=PRECISION)
    tl.store(o + of_token, (scale * y).to(o.dtype.element_ty), here[:, None])
