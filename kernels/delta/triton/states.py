"""States before chunks, or, backwards in time, their gradients after them: chunks are affine maps, so groups are, too.

A chunk makes `decay S + A + L^T (X + M S)` of S. A group of consecutive chunks is composed first, as what it makes of
an empty state and of each unit vector, side by side with all other groups; then groups are taken one after the other;
then, again side by side, the chunks of each group from the state that it starts with. So N chunks are three times
sqrt(N) steps.

Programs hold states with columns first, `S^T [BLOCK, K]`: products then have as many rows as Hopper's tensor cores
take at a time, and what one product gives is the left operand of the next, which those take from registers.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["compose_kernel", "join_kernel", "states_kernel"]


@triton.jit
def _edges(slot, slots, T, C, bounds, PACKED: tl.constexpr):
    """A slot's sequence, whether its chunk is the first and whether it is the last of it, and whether it has tokens."""
    if PACKED:
        bounds += slot * 4
        after = tl.load(bounds + 6, slot + 1 < slots, 0)
        exists = tl.load(bounds + 1) > tl.load(bounds)
        return tl.load(bounds + 3).to(tl.int64), tl.load(bounds + 2) == 0, after == 0, exists
    chunks = tl.cdiv(T, C)
    place = slot % chunks
    return slot // chunks, place == 0, place == chunks - 1, slot >= 0


@triton.jit
def _chunk(n, first, count, sizes, bounds, REVERSE: tl.constexpr, PACKED: tl.constexpr):
    """The nth chunk of a group on the way: its slot, first token, tokens and sequence, if it is the first on the way
    and the last of that, and whether it has tokens."""
    slots, T, C = sizes
    slot = (first + (count - 1 - n if REVERSE else n)).to(tl.int64)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    sequence, begins, ends, exists = _edges(slot, slots, T, C, bounds, PACKED)
    if REVERSE:
        begins, ends = ends, begins
    return slot, start, tokens, sequence, begins, ends, exists


@triton.jit
def _begin(S, initial, places, begins, HAS_INITIAL: tl.constexpr):
    """S^T, or what its sequence begins with; places is of `[BLOCK, K]` and where there are any."""
    if HAS_INITIAL:
        return tl.where(begins, tl.load(initial + places[0], places[1] & begins, 0), S)
    return tl.where(begins, 0.0, S)


@triton.jit
def _pass(S, tensors, chunk, whole, kinds: tl.constexpr, PRECISION: tl.constexpr):
    """One chunk: `decay S + A + L^T (X + M S)`, and `X + M S`, all with columns first: S is `[BLOCK, K]`, as is A.

    whole are these columns of a state `[K, V]`, if they are columns of values; kinds are GATED, CHANNELS, WRITES (there
    is an L), READS (an M), VALUES (an X), ADDS (an A), C and V.
    """
    left, right, wholes, values, additions = tensors
    place, start, tokens, head, HEADS = chunk
    columns, of_values = whole
    GATED: tl.constexpr = kinds[0]
    CHANNELS: tl.constexpr = kinds[1]
    WRITES: tl.constexpr = kinds[2]
    READS: tl.constexpr = kinds[3]
    VALUES: tl.constexpr = kinds[4]
    ADDS: tl.constexpr = kinds[5]
    C: tl.constexpr = kinds[6]
    V: tl.constexpr = kinds[7]
    BLOCK: tl.constexpr = S.shape[0]
    K: tl.constexpr = S.shape[1]
    at, channels = tl.arange(0, C), tl.arange(0, K)
    of_keys = place * C * K + at[:, None] * K + channels[None, :]
    if CHANNELS:
        after = S * tl.load(wholes + place * K + channels)[None, :]
    elif GATED:
        after = S * tl.load(wholes + place)
    else:
        after = S
    if ADDS:
        here = (channels[None, :] >= 0) & of_values
        after += tl.load(additions + place * K * V + channels[None, :] * V + columns[:, None], here, 0).to(tl.float32)
    value = tl.zeros((BLOCK, C), tl.float32)
    if VALUES:
        of_tokens = (start * HEADS + head) * V + at[None, :] * HEADS * V + columns[:, None]
        value = tl.load(values + of_tokens, (at < tokens)[None, :] & of_values, 0).to(tl.float32)
    if READS:
        read = tl.trans(tl.load(right + of_keys))
        value = tl.dot(as_operand(S, right.dtype.element_ty, PRECISION), read, value, input_precision=PRECISION)
    if WRITES:
        write = tl.load(left + of_keys)
        after = tl.dot(as_operand(value, left.dtype.element_ty, PRECISION), write, after, input_precision=PRECISION)
    return after, value


@triton.jit(do_not_specialize=["T", "slots", "LENGTH"])
def compose_kernel(
    left, right, wholes, values, additions, initial, products, sums, bounds, T, slots, LENGTH, HEADS,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
    CHANNELS: tl.constexpr, WRITES: tl.constexpr, READS: tl.constexpr, VALUES: tl.constexpr, ADDS: tl.constexpr,
    HAS_INITIAL: tl.constexpr, REVERSE: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A group's sums `[groups, Hv, K, V]` and products `[groups, Hv, K, K]`: `S_after = products S_before + sums`.

    A program takes BLOCK columns of one or the other. Where a sequence starts within a group, what was before it is
    replaced by its initial state. The rest is as in `states_kernel`.
    """
    group, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    of_values = block < V // BLOCK
    columns = block * BLOCK + tl.arange(0, BLOCK)
    channels = tl.arange(0, K)
    whole = channels[None, :] * V + columns[:, None]
    exists = (channels[None, :] >= 0) & of_values
    S = tl.where(channels[None, :] == columns[:, None] - V, 1.0, 0.0)
    kinds: tl.constexpr = (GATED, CHANNELS, WRITES, READS, VALUES, ADDS, C, V)
    tensors = (left, right, wholes, values, additions)
    first = group * LENGTH
    count = tl.minimum(LENGTH, slots - first)
    for n in range(count):
        slot, start, tokens, sequence, begins, _, _ = _chunk(n, first, count, (slots, T, C), bounds, REVERSE, PACKED)
        outside = (sequence * HEADS + head).to(tl.int64) * K * V + whole
        S = _begin(S, initial, (outside, exists), begins, HAS_INITIAL)
        chunk = (slot * HEADS + head, start, tokens, head, HEADS)
        S, _ = _pass(S, tensors, chunk, (columns, of_values), kinds, PRECISION)
    place = group.to(tl.int64) * HEADS + head
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
    for n in range(groups):
        place = (groups - 1 - n if REVERSE else n) * HEADS + head.to(tl.int64)
        tl.store(starts + place * K * V + whole, S)
        # Of a state that does not decay a product is all there is: rounded, it would take a digit from it each time.
        product = tl.load(products + place * K * K + square)
        S = tl.dot(product, S, tl.load(sums + place * K * V + whole), input_precision="tf32x3")


@triton.jit(do_not_specialize=["T", "slots", "LENGTH"])
def states_kernel(
    left, right, wholes, values, additions, initial, starts, states, final, read, before, first_states, alongs,
    bounds, T, slots, LENGTH, HEADS,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
    CHANNELS: tl.constexpr, WRITES: tl.constexpr, READS: tl.constexpr, VALUES: tl.constexpr, ADDS: tl.constexpr,
    HAS_INITIAL: tl.constexpr, REVERSE: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    HAS_STARTS: tl.constexpr, WANTS_FINAL: tl.constexpr, WANTS_READ: tl.constexpr, WANTS_ALONG: tl.constexpr,
    HAS_FIRST: tl.constexpr,
):  # fmt: skip
    """States before chunks, or gradients after them `[slots, Hv, K, V]`, and what is left of each sequence's.

    left and right are `[slots, Hv, C, K]`, wholes the decay of a whole chunk `[slots, Hv]` or `[slots, Hv, K]`, values
    `[B T, Hv, V]`, additions `[slots, Hv, K, V]`. initial and final are `[sequences, Hv, K, V]` in float32, starts
    `[groups, Hv, K, V]`. A program takes BLOCK columns of a head's state through a group.

    Also read `X + M S` of the shape of values, and alongs, the sums over BLOCK columns of gradients times the states
    before `[slots, Hv, K, V]`, of which the first of each sequence are first_states: `[slots, Hv, V // BLOCK]`, or
    `[slots, Hv, V // BLOCK, K]` of CHANNELS.
    """
    group, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    at, channels = tl.arange(0, C), tl.arange(0, K)
    whole = channels[None, :] * V + columns[:, None]
    exists = channels[None, :] >= 0
    S = tl.zeros((BLOCK, K), tl.float32)
    if HAS_STARTS:
        S = tl.load(starts + (group.to(tl.int64) * HEADS + head) * K * V + whole)
    kinds: tl.constexpr = (GATED, CHANNELS, WRITES, READS, VALUES, ADDS, C, V)
    tensors = (left, right, wholes, values, additions)
    first = group * LENGTH
    count = tl.minimum(LENGTH, slots - first)
    for n in range(count):
        slot, start, tokens, sequence, begins, ends, has_tokens = _chunk(
            n, first, count, (slots, T, C), bounds, REVERSE, PACKED
        )
        outside = (sequence * HEADS + head).to(tl.int64) * K * V + whole
        S = _begin(S, initial, (outside, exists), begins, HAS_INITIAL)
        place = slot * HEADS + head
        tl.store(states + place * K * V + whole, S.to(states.dtype.element_ty))
        if WANTS_ALONG:
            met = tl.load(before + place * K * V + whole).to(tl.float32)
            if HAS_FIRST:  # with all its digits: of a short sequence it is nearly all there is
                met = tl.where(ends, tl.load(first_states + outside, exists & ends, 0), met)
            along = tl.sum(S * met, 0)
            part = place * (V // BLOCK) + block
            if CHANNELS:
                tl.store(alongs + part * K + channels, along)
            else:
                tl.store(alongs + part, tl.sum(along, 0))
        S, value = _pass(S, tensors, (place, start, tokens, head, HEADS), (columns, tokens > 0), kinds, PRECISION)
        if WANTS_READ:
            of_tokens = (start * HEADS + head) * V + at[None, :] * HEADS * V + columns[:, None]
            tl.store(read + of_tokens, as_operand(value, read.dtype.element_ty, PRECISION), (at < tokens)[None, :])
        if WANTS_FINAL:
            tl.store(final + outside, S, exists & ends & has_tokens)
