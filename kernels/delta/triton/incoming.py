"""What a chunk adds to the gradient of the state before it, whatever the gradient of the state after it is."""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.gates import decay_between, head_sums
from zoo.kernels.delta.triton.prepare import solve_transposed
from zoo.kernels.delta.triton.scores import channel_scores
from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["incoming_kernel"]


@triton.jit(do_not_specialize=["T"])
def incoming_kernel(
    q, k, do, log_g, sums, beta, inverses, additions, derrors, reads, kept, wholes, bounds, T, scale,
    Q_HEADS, K_HEADS, HEADS,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
    LOWEST: tl.constexpr, GATED: tl.constexpr, CHANNELS: tl.constexpr, CORRECTS: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """additions `D = (q exp(G))^T do [slots, Hv, K, V]` and derrors dr `[B T, Hv, V]`, from do of that shape.

    dr is the gradient of values, but for what the state after the chunk gives to it:
    `dS_start = decay dS_end + D - (k exp(G))^T (dr + R dS_end)`, where the last term is there if it CORRECTS. The
    operands of that, reads, kept and wholes, are made again as in `prepare_kernel`. A program takes one chunk and value
    head, BLOCK values at a time.
    """
    scale = tl.cast(scale, tl.float32)
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    place = slot * HEADS + head
    dtype: tl.constexpr = additions.dtype.element_ty
    at, channels = tl.arange(0, C), tl.arange(0, K)
    here = at < tokens
    q += start * Q_HEADS * K + head * Q_HEADS // HEADS * K
    k += start * K_HEADS * K + head * K_HEADS // HEADS * K
    queries = tl.load(q + at[:, None] * Q_HEADS * K + channels[None, :], here[:, None], 0).to(dtype)
    keys = tl.load(k + at[:, None] * K_HEADS * K + channels[None, :], here[:, None], 0).to(dtype)

    if CHANNELS:
        sums += (start * HEADS + head) * K
    elif GATED:
        total = head_sums(log_g + start * HEADS + head, at, here, HEADS, LOWEST)
    if CHANNELS:
        scores = channel_scores(queries, keys, (sums, HEADS * K, tokens), LEVELS, PRECISION)
    else:
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        if GATED:
            scores *= decay_between(total)
        scores = tl.where(at[:, None] >= at[None, :], scores, 0.0)
    scores = tl.trans(as_operand(scores, dtype, PRECISION))

    read_queries = queries
    read = keys
    left = keys
    if CHANNELS:
        total = tl.load(sums + at[:, None] * HEADS * K + channels[None, :], here[:, None], 0)
        end = tl.load(sums + tl.maximum(tokens - 1, 0) * HEADS * K + channels, channels < K * tokens, 0)
        tl.store(wholes + place * K + channels, tl.exp2(end.to(tl.float32)))
        decayed = tl.exp2(total.to(tl.float32))
        read_queries = queries * decayed
        read = keys * decayed
        left = keys * tl.exp2((end[None, :] - total).to(tl.float32))
    elif GATED:
        end = tl.sum(tl.where(at == C - 1, total, 0), 0)
        tl.store(wholes + place, tl.exp2(end.to(tl.float32)))
        decayed = tl.exp2(total.to(tl.float32))[:, None]
        read_queries = queries * decayed
        read = keys * decayed
        left = keys * tl.exp2((end - total).to(tl.float32))[:, None]

    of_keys = place * C * K + at[:, None] * K + channels[None, :]
    if CORRECTS:
        rates = tl.load(beta + (start + at) * HEADS + head, here, 0).to(tl.float32)
        inverse = tl.load(inverses + place * C * C + at[:, None] * C + at[None, :])
        tl.store(reads + of_keys, as_operand(-read.to(tl.float32), dtype, PRECISION))
        left = solve_transposed(inverse, left * rates[:, None], PRECISION)
    tl.store(kept + of_keys, as_operand(left, dtype, PRECISION))
    read_queries = tl.trans(as_operand(read_queries, dtype, PRECISION))
    for block in range(V // BLOCK):  # not unrolled, which spares registers
        values = block * BLOCK + tl.arange(0, BLOCK)
        of_token = (start * HEADS + head) * V + at[:, None] * HEADS * V + values[None, :]
        dy = tl.load(do + of_token, here[:, None], 0).to(dtype)
        addition = scale * tl.dot(read_queries, dy, input_precision=PRECISION)
        tl.store(additions + place * K * V + channels[:, None] * V + values[None, :], addition.to(dtype))
        derror = scale * tl.dot(scores, dy, input_precision=PRECISION)
        if CORRECTS:
            derror = solve_transposed(inverse, rates[:, None] * derror, PRECISION)
        tl.store(derrors + of_token, derror.to(dtype), here[:, None])
