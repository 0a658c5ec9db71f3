"""States before chunks, or, backwards in time, their gradients after them: chunks are affine maps, so groups are, too.

A chunk makes `decay S + A + Q^T Y + L^T E (X + M S)` of S. A group of consecutive chunks is composed first, as what it
makes of an empty state and of each unit vector, side by side with all other groups; then groups are taken one after
the other; then, again side by side, the chunks of each group from the state that it starts with. So N chunks are three
times sqrt(N) steps.
"""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.chunk_map import (
    begin,
    decay_of_chunk,
    decays_of_channels,
    enter_chunk,
    factors_of_tokens,
    load_columns,
    load_rows,
    read_state,
    solve_columns,
    write_state,
)
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["compose_kernel", "join_kernel", "states_kernel"]


@triton.jit
def _read(S, tensors, chunk, whole, factors, kinds: tl.constexpr):
    """Of a chunk `E (X + M S)`, and Y, with columns first `[BLOCK, C]`; whole are these columns of values, if they are
    any.

    X is what is given, or `W^T Y`. kinds are READS (there is an M), VALUES (an X), ASKS (a Q), OF_TOKENS (k and q are
    tokens'), RATED, PARTS of inverses, REVERSE, C, V, the DTYPE of products and their PRECISION.
    """
    right, values, weights, dy, inverses, SHARED = tensors
    columns, of_values = whole
    kept, rate = factors
    READS: tl.constexpr = kinds[0]
    VALUES: tl.constexpr = kinds[1]
    ASKS: tl.constexpr = kinds[2]
    OF_TOKENS: tl.constexpr = kinds[3]
    RATED: tl.constexpr = kinds[4]
    PARTS: tl.constexpr = kinds[5]
    REVERSE: tl.constexpr = kinds[6]
    C: tl.constexpr = kinds[7]
    V: tl.constexpr = kinds[8]
    DTYPE: tl.constexpr = kinds[9]
    PRECISION: tl.constexpr = kinds[10]
    value = tl.zeros((S.shape[0], C), tl.float32)
    asked = value
    if ASKS:
        asked = load_columns(dy, chunk, columns, of_values, C, V).to(DTYPE)
        value = tl.dot(asked, load_rows(weights, chunk, 1, C, C, False), value, input_precision=PRECISION)
    if VALUES:
        value = load_columns(values, chunk, columns, of_values, C, V).to(tl.float32)
    if READS:
        rows = load_rows(right, chunk, SHARED, C, S.shape[1], OF_TOKENS).to(DTYPE)
        factor = -rate if REVERSE else kept
        value = read_state(S, value, rows, factor, RATED if REVERSE else OF_TOKENS, PRECISION)
    if PARTS:
        value = solve_columns(value, inverses, chunk[0], PARTS, REVERSE, PRECISION)
    return value, asked


@triton.jit
def _write(S, value, asked, tensors, chunk, factors, kinds: tl.constexpr):
    """Of a chunk `decay S + A + Q^T Y + L^T value`, with columns first; factors are of S, of tokens twice, and scale.

    kinds are GATED, WRITES (there is an L), ADDS (an A), ASKS, OF_TOKENS, RATED, REVERSE, DTYPE and PRECISION.
    """
    left, queries, K_SHARED, Q_SHARED, added = tensors
    whole, kept, rate, scale = factors
    OF_TOKENS: tl.constexpr = kinds[4]
    REVERSE: tl.constexpr = kinds[6]
    DTYPE: tl.constexpr = kinds[7]
    PRECISION: tl.constexpr = kinds[8]
    C: tl.constexpr = value.shape[1]
    K: tl.constexpr = S.shape[1]
    after = S
    if kinds[0]:
        after *= whole
    if kinds[2]:
        after += added.to(tl.float32)
    if kinds[3]:
        if OF_TOKENS:
            asked = asked.to(tl.float32) * (scale * kept)
        after = write_state(after, asked, load_rows(queries, chunk, Q_SHARED, C, K, OF_TOKENS).to(DTYPE), PRECISION)
    if kinds[1]:
        if REVERSE and OF_TOKENS:
            value *= -kept
        if kinds[5] and not REVERSE:
            value *= rate
        after = write_state(after, value, load_rows(left, chunk, K_SHARED, C, K, OF_TOKENS).to(DTYPE), PRECISION)
    return after


@triton.jit(do_not_specialize=["T", "slots", "LENGTH"])
def compose_kernel(
    left, right, decays, rates, inverses, values, additions, queries, weights, dy, initial, products, sums, bounds,
    T, slots, LENGTH, scale, Q_HEADS, K_HEADS, HEADS,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
    CHANNELS: tl.constexpr, RATED: tl.constexpr, PARTS: tl.constexpr, WRITES: tl.constexpr, READS: tl.constexpr,
    VALUES: tl.constexpr, ADDS: tl.constexpr, ASKS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    REVERSE: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A group's sums `[groups, Hv, K, V]` and products `[groups, Hv, K, K]`: `S_after = products S_before + sums`.

    A program takes BLOCK columns of one or the other. Where a sequence starts within a group, what was before it is
    replaced by its initial state. The rest is as in `states_kernel`.
    """
    scale = tl.cast(scale, tl.float32)
    OF_TOKENS: tl.constexpr = not CHANNELS
    n_group, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    of_values = block < V // BLOCK
    columns = block * BLOCK + tl.arange(0, BLOCK)
    channels = tl.arange(0, K)
    whole = channels[None, :] * V + columns[:, None]
    exists = (channels[None, :] >= 0) & of_values
    S = tl.where(channels[None, :] == columns[:, None] - V, 1.0, 0.0)
    FOUND: tl.constexpr = right.dtype.element_ty if REVERSE else left.dtype.element_ty
    DTYPE: tl.constexpr = tl.float32 if FOUND == tl.float16 else FOUND  # tokens may be of float16, no product is
    reads: tl.constexpr = (READS, VALUES, ASKS, OF_TOKENS, RATED, PARTS, REVERSE, C, V, DTYPE, PRECISION)
    writes: tl.constexpr = (GATED, WRITES, ADDS, ASKS, OF_TOKENS, RATED, REVERSE, DTYPE, PRECISION)
    keeps: tl.constexpr = (GATED, CHANNELS, C, REVERSE)
    first = n_group * LENGTH
    group = (first, tl.minimum(LENGTH, slots - first))
    ahead = decay_of_chunk(decays, 0, group, (head, HEADS), keeps)
    for n in range(group[1]):
        slot, start, tokens, sequence, begins, _ = enter_chunk(n, group, (slots, T, C), bounds, REVERSE, PACKED)
        place = slot * HEADS + head
        outside = (sequence * HEADS + head) * K * V + whole
        S = begin(S, initial, (outside, exists), begins, HAS_INITIAL)
        decay = decays_of_channels(decays, place, ahead, K, CHANNELS)
        ahead = decay_of_chunk(decays, n + 1, group, (head, HEADS), keeps)
        kept = factors_of_tokens(decays, place, C, GATED and OF_TOKENS)
        rate = factors_of_tokens(rates, place, C, RATED)
        chunk = (place, start, tokens, head, HEADS)
        added = S
        if ADDS:
            added = tl.load(additions + place * K * V + whole, exists, 0)
        tensors = (right, values, weights, dy, inverses, K_HEADS)
        value, asked = _read(S, tensors, chunk, (columns, of_values), (kept, rate), reads)
        S = _write(S, value, asked, (left, queries, K_HEADS, Q_HEADS, added), chunk, (decay, kept, rate, scale), writes)
    place = n_group.to(tl.int64) * HEADS + head
    if of_values:
        tl.store(sums + place * K * V + whole, S)
    else:
        tl.store(products + place * K * K + channels[None, :] * K + columns[:, None] - V, S)


@triton.jit(do_not_specialize=["groups"])
def join_kernel(
    products, sums, starts, groups, HEADS,
    K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """States before groups, or gradients after them `[groups, Hv, K, V]`, for BLOCK columns."""
    head, block = tl.program_id(0), tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    channels = tl.arange(0, K)
    whole = channels[:, None] * V + columns[None, :]
    square = channels[:, None] * K + channels[None, :]
    S = tl.zeros((K, BLOCK), tl.float32)
    place = (groups - 1 if REVERSE else 0) * HEADS + head.to(tl.int64)
    ahead = tl.load(sums + place * K * V + whole)
    for n in range(groups):
        tl.store(starts + place * K * V + whole, S)
        product = tl.load(products + place * K * K + square)
        added = ahead
        following = tl.minimum(n + 1, groups - 1)
        place = (groups - 1 - following if REVERSE else following) * HEADS + head.to(tl.int64)
        ahead = tl.load(sums + place * K * V + whole)
        # Of a state that does not decay a product is all there is: rounded, it would take a digit from it each time.
        S = tl.dot(product, S, added, input_precision="tf32x3")


@triton.jit(do_not_specialize=["T", "slots", "LENGTH"])
def states_kernel(
    left, right, decays, rates, inverses, values, additions, queries, weights, dy, initial, starts, states,
    final, read, before, first_states, alongs, bounds, T, slots, LENGTH, scale, Q_HEADS, K_HEADS, HEADS,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
    CHANNELS: tl.constexpr, RATED: tl.constexpr, PARTS: tl.constexpr, WRITES: tl.constexpr, READS: tl.constexpr,
    VALUES: tl.constexpr, ADDS: tl.constexpr, ASKS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    REVERSE: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    HAS_STARTS: tl.constexpr, WANTS_FINAL: tl.constexpr, WANTS_READ: tl.constexpr,
    WANTS_ALONG: tl.constexpr, HAS_FIRST: tl.constexpr,
):  # fmt: skip
    """States before chunks, or gradients after them `[slots, Hv, K, V]`, and what is left of each sequence's.

    Of CHANNELS with gates left, right and queries are `[slots, Hv, C, K]`, and decays `[slots, Hv, K]`. Else decays are
    `[slots, Hv, C]`, from the start of a chunk to each token, and left, right and queries tokens' `[B T, Hq or Hk, K]`,
    which decay here. If RATED, rates `[slots, Hv, C]` are factors on what is written forwards, and read backwards: the
    rate of a token and, but for CHANNELS, its decay to the end of the chunk. E are inverses in PARTS, `[slots, Hv,
    PARTS, C, C]`, or backwards their transpose; of no PARTS there are none. values are `[B T, Hv, V]`, additions
    `[slots, Hv, K, V]`. If it ASKS there are dy, of the shape of values, and weights W `[slots, Hv, C, C]`. initial and
    final are `[sequences, Hv, K, V]` in float32, starts `[groups, Hv, K, V]`. A program takes BLOCK columns of a head's
    state through a group.

    Also read of the shape of values, `E (X + M S)`, and alongs, the sums over BLOCK columns of gradients times the
    states before `[slots, Hv, K, V]`, of which the first of each sequence are
    first_states: `[slots, Hv, V // BLOCK]`, or `[slots, Hv, V // BLOCK, K]` of CHANNELS.
    """
    scale = tl.cast(scale, tl.float32)
    OF_TOKENS: tl.constexpr = not CHANNELS
    n_group, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    at, channels = tl.arange(0, C), tl.arange(0, K)
    whole = channels[None, :] * V + columns[:, None]
    exists = channels[None, :] >= 0
    S = tl.zeros((BLOCK, K), tl.float32)
    if HAS_STARTS:
        S = tl.load(starts + (n_group.to(tl.int64) * HEADS + head) * K * V + whole)
    DTYPE: tl.constexpr = states.dtype.element_ty
    reads: tl.constexpr = (READS, VALUES, ASKS, OF_TOKENS, RATED, PARTS, REVERSE, C, V, DTYPE, PRECISION)
    writes: tl.constexpr = (GATED, WRITES, ADDS, ASKS, OF_TOKENS, RATED, REVERSE, DTYPE, PRECISION)
    keeps: tl.constexpr = (GATED, CHANNELS, C, REVERSE)
    first = n_group * LENGTH
    group = (first, tl.minimum(LENGTH, slots - first))
    ahead = decay_of_chunk(decays, 0, group, (head, HEADS), keeps)
    for n in range(group[1]):
        slot, start, tokens, sequence, begins, ends = enter_chunk(n, group, (slots, T, C), bounds, REVERSE, PACKED)
        place = slot * HEADS + head
        outside = (sequence * HEADS + head) * K * V + whole
        S = begin(S, initial, (outside, exists), begins, HAS_INITIAL)
        tl.store(states + place * K * V + whole, S.to(DTYPE))
        met = S
        if WANTS_ALONG:
            met = tl.load(before + place * K * V + whole)
        decay = decays_of_channels(decays, place, ahead, K, CHANNELS)
        ahead = decay_of_chunk(decays, n + 1, group, (head, HEADS), keeps)
        kept = factors_of_tokens(decays, place, C, GATED and OF_TOKENS)
        rate = factors_of_tokens(rates, place, C, RATED)
        chunk = (place, start, tokens, head, HEADS)
        added = S
        if ADDS:
            added = tl.load(additions + place * K * V + whole, exists & (tokens > 0), 0)
        tensors = (right, values, weights, dy, inverses, K_HEADS)
        value, asked = _read(S, tensors, chunk, (columns, tokens > 0), (kept, rate), reads)
        if WANTS_ALONG:  # not sooner, for then it would wait
            met = met.to(tl.float32)
            if HAS_FIRST:  # with all its digits: of a short sequence it is nearly all there is
                met = tl.where(ends, tl.load(first_states + outside, exists & ends, 0), met)
            along = tl.sum(S * met, 0)
            part = place * (V // BLOCK) + block
            if CHANNELS:
                tl.store(alongs + part * K + channels, along)
            else:
                tl.store(alongs + part, tl.sum(along, 0))
        S = _write(S, value, asked, (left, queries, K_HEADS, Q_HEADS, added), chunk, (decay, kept, rate, scale), writes)
        if WANTS_READ:
            of_tokens = (start * HEADS + head) * V + at[None, :] * HEADS * V + columns[:, None]
            tl.store(read + of_tokens, as_operand(value, read.dtype.element_ty, PRECISION), (at < tokens)[None, :])
        if WANTS_FINAL:
            tl.store(final + outside, S, exists & ends & (tokens > 0))
