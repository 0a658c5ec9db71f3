"""What a chunk adds to the gradient of the state before it, whatever the gradient of the state after it is."""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.chunk import boundary_decays, chunk_scores, chunk_sums, load_shared
from zoo.kernels.delta.triton.prepare import solve_transposed
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
    chunk, gates = (start, tokens, head), (sums + (start * HEADS + head) * K, HEADS * K, tokens)
    queries = load_shared(q, at, chunk, (Q_HEADS, HEADS), channels, K).to(dtype)
    keys = load_shared(k, at, chunk, (K_HEADS, HEADS), channels, K).to(dtype)
    total = chunk_sums(log_g, at, chunk, HEADS, LOWEST, GATED, CHANNELS)
    scores = chunk_scores(queries, keys, total, gates, LEVELS, GATED, CHANNELS, PRECISION)
    scores = tl.trans(as_operand(scores, dtype, PRECISION))
    read_queries = queries
    read = keys
    left = keys
    if GATED:
        from_start, to_end, whole = boundary_decays(at, total, gates, channels, CHANNELS)
        tl.store(wholes + (place * K + channels if CHANNELS else place), whole)
        read_queries = queries * from_start
        read = keys * from_start
        left = keys * to_end

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
