"""The output: what the state before a chunk and the chunk itself give to each query."""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.chunk import boundary_decays, chunk_scores, chunk_sums, load_shared
from zoo.kernels.delta.triton.prepare import solve
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
    chunk, gates = (start, tokens, head), (sums + (start * HEADS + head) * K, HEADS * K, tokens)
    queries = load_shared(q, at, chunk, (Q_HEADS, HEADS), channels, K).to(dtype)
    keys = load_shared(k, at, chunk, (K_HEADS, HEADS), channels, K).to(dtype)
    of_token = (start * HEADS + head) * V + at[:, None] * HEADS * V + values[None, :]
    total = chunk_sums(log_g, at, chunk, HEADS, LOWEST, GATED, CHANNELS)
    scores = chunk_scores(queries, keys, total, gates, LEVELS, GATED, CHANNELS, PRECISION)
    scores = as_operand(scores, dtype, PRECISION)
    from_start = 1.0
    if GATED:
        decayed, _, _ = boundary_decays(at, total, gates, channels, CHANNELS)
        if CHANNELS:
            queries = as_operand(queries * decayed, dtype, PRECISION)
            keys = as_operand(keys * decayed, dtype, PRECISION)
        else:
            from_start = decayed

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
