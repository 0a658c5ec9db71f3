"""Gradients of queries, keys, rates and gates, from the states on both sides of a chunk and its errors."""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.chunk import boundary_decays, chunk_sums, load_shared
from zoo.kernels.delta.triton.gates import decay_between
from zoo.kernels.delta.triton.scores import add_gradients
from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["key_gradient_kernel"]


@triton.jit
def _gate_gradient(read, kept, whole):
    """The gradient of a head's gates from those of their sums.

    What tokens read, and pairs of tokens, count for all gates up to the reader; what is kept of a token for all gates
    after it; and what the state keeps for all gates of the chunk. Nothing of it cancels.
    """
    return tl.cumsum(read, 0, reverse=True) + (tl.cumsum(kept, 0) - kept) + whole


@triton.jit
def _pairs(dscores, readers, keys, PRECISION: tl.constexpr):
    """What pairs of tokens give to the sums of gates at readers, less what they take from it at keys `[C]`."""
    at = tl.arange(0, readers.shape[0])
    pairs = dscores * tl.dot(readers, tl.trans(keys), input_precision=PRECISION)
    pairs = tl.where(at[:, None] > at[None, :], pairs, 0.0)  # of a token with itself nothing decays
    return tl.sum(pairs, 1) - tl.sum(pairs, 0)


@triton.jit(do_not_specialize=["T"])
def key_gradient_kernel(
    q, k, do, dr, errors, log_g, sums, beta, states, dstates, alongs, dq, dk, dlog_g, dbeta, bounds, T, scale,
    Q_HEADS, K_HEADS, HEADS,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
    LOWEST: tl.constexpr, GATED: tl.constexpr, CHANNELS: tl.constexpr, CORRECTS: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr, VALUES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """dq, dk `[B T, Hv, K]`, if there are gates dlog_g, and if it CORRECTS dbeta: parts of the latter two
    `[B T, Hv, K // BLOCK]`, or, of CHANNELS, all of dlog_g `[B T, Hv, K]`.

    errors, or values where nothing is corrected, and their gradients dr are `[B T, Hv, V]`; alongs are sums of states
    times their gradients in PARTS (see `states_kernel`). What is written is `(beta k) e^T`, so that the gradient w of
    `beta k` gives `dbeta = w . k`. Keys that correct read as queries do, with the gradient -dr where those have do. A
    program takes BLOCK channels of one chunk and value head, and VALUES values at a time.
    """
    scale = tl.cast(scale, tl.float32)
    slot, head, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    if tokens == 0:
        return
    place = slot * HEADS + head
    dtype: tl.constexpr = states.dtype.element_ty
    at, channels = tl.arange(0, C), block * BLOCK + tl.arange(0, BLOCK)
    here = at < tokens
    row, column = at[:, None], at[None, :]

    dscores = tl.zeros((C, C), tl.float32)
    dmet = tl.zeros((C, C), tl.float32)
    dqueries = tl.zeros((C, BLOCK), tl.float32)
    dwriters = tl.zeros((C, BLOCK), tl.float32)
    dreaders = tl.zeros((C, BLOCK), tl.float32)
    for part in range(V // VALUES):  # not unrolled, which spares registers
        values = part * VALUES + tl.arange(0, VALUES)
        of_token = (start * HEADS + head) * V + row * HEADS * V + values[None, :]
        of_state = place * K * V + channels[:, None] * V + values[None, :]
        dy = tl.load(do + of_token, here[:, None], 0).to(dtype)
        error = tl.load(errors + of_token, here[:, None], 0).to(dtype)
        S = tl.trans(tl.load(states + of_state))
        dscores = tl.dot(dy, tl.trans(error), dscores, input_precision=PRECISION)
        dqueries = tl.dot(dy, S, dqueries, input_precision=PRECISION)
        dwriters = tl.dot(error, tl.trans(tl.load(dstates + of_state)), dwriters, input_precision=PRECISION)
        if CORRECTS:
            dread = tl.load(dr + of_token, here[:, None], 0).to(dtype)
            dmet = tl.dot(dread, tl.trans(error), dmet, input_precision=PRECISION)
            dreaders = tl.dot(dread, S, dreaders, input_precision=PRECISION)

    chunk = (start, tokens, head)
    queries = load_shared(q, at, chunk, (Q_HEADS, HEADS), channels, K).to(dtype)
    keys = load_shared(k, at, chunk, (K_HEADS, HEADS), channels, K).to(dtype)
    of_key = (start * HEADS + head) * K + row * HEADS * K + channels[None, :]
    writers = keys
    if CORRECTS:
        rates = tl.load(beta + (start + at) * HEADS + head, here, 0).to(tl.float32)[:, None]
        writers = as_operand(rates * keys, dtype, PRECISION)
    from_start = 1.0
    to_end = 1.0
    total = chunk_sums(log_g, at, chunk, HEADS, LOWEST, GATED, CHANNELS)
    gates = (sums + (start * HEADS + head) * K + block * BLOCK, HEADS * K, tokens)
    if GATED:
        from_start, to_end, whole = boundary_decays(at, total, gates, tl.arange(0, BLOCK), CHANNELS)

    dscores = tl.where(row >= column, scale * dscores, 0.0)
    dqueries *= scale * from_start
    dwriters *= to_end
    read = queries * dqueries
    kept = writers * dwriters
    if CHANNELS:
        # Of channels sums of what is kept cancel, to float32's digits, which spares the registers of a tile.
        read -= kept
        kept = tl.sum(kept, 0)
        found = (dqueries, dwriters, read)
        dqueries, dwriters, read = add_gradients(found, dscores, queries, writers, gates, LEVELS, PRECISION)
    else:
        if GATED:
            dscores *= decay_between(total)
            read = tl.sum(read, 1) + _pairs(dscores, queries, writers, PRECISION)
            kept = tl.sum(kept, 1)
        dscores = as_operand(dscores, dtype, PRECISION)
        dqueries = tl.dot(dscores, writers, dqueries, input_precision=PRECISION)
        dwriters = tl.dot(tl.trans(dscores), queries, dwriters, input_precision=PRECISION)
    tl.store(dq + of_key, dqueries.to(dq.dtype.element_ty), here[:, None])

    dkeys = dwriters
    if CORRECTS:
        dmet = tl.where(row > column, -dmet, 0.0)
        dreaders *= -from_start
        if CHANNELS:
            read += keys * dreaders
            found = (dreaders, dwriters, read)
            dreaders, dwriters, read = add_gradients(found, dmet, keys, writers, gates, LEVELS, PRECISION)
        else:
            if GATED:
                dmet *= decay_between(total)
                read += tl.sum(keys * dreaders, 1) + _pairs(dmet, keys, writers, PRECISION)
            dmet = as_operand(dmet, dtype, PRECISION)
            dreaders = tl.dot(dmet, writers, dreaders, input_precision=PRECISION)
            dwriters = tl.dot(tl.trans(dmet), keys, dwriters, input_precision=PRECISION)
        dkeys = dreaders + rates * dwriters
        of_rates = ((start + at) * HEADS + head) * (K // BLOCK) + block
        tl.store(dbeta + of_rates, tl.sum(keys * dwriters, 1), here)
    tl.store(dk + of_key, dkeys.to(dk.dtype.element_ty), here[:, None])

    if GATED:
        parts = place * PARTS + tl.arange(0, PARTS)
        if CHANNELS:
            along = tl.sum(tl.load(alongs + parts[:, None] * K + channels[None, :]), 0)
            gradient = tl.cumsum(read, 0, reverse=True) + (kept + whole * along)[None, :]
            given = tl.load(log_g + of_key, here[:, None], 0)
            tl.store(dlog_g + of_key, tl.where(given <= LOWEST, 0.0, gradient), here[:, None])
        else:
            along = tl.sum(tl.load(alongs + parts), 0)
            gradient = _gate_gradient(read, kept, tl.where(block == 0, whole * along, 0.0))
            of_gates = (start + at) * HEADS + head
            given = tl.load(log_g + of_gates, here, 0)
            tl.store(dlog_g + of_gates * (K // BLOCK) + block, tl.where(given <= LOWEST, 0.0, gradient), here)
