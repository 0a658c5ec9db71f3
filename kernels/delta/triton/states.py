"""States before chunks, or, backwards in time, their gradients after them: chunks are affine maps, so groups are, too.

A group of consecutive chunks is composed first, as what it makes of an empty state and of each unit vector, side by
side with all other groups; then groups are taken one after the other; then, again side by side, the chunks of each
group from the state that it starts with. So N chunks are three times sqrt(N) steps.
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
        return tl.load(bounds + 3), tl.load(bounds + 2) == 0, after == 0, exists
    chunks = tl.cdiv(T, C)
    place = slot % chunks
    return slot // chunks, place == 0, place == chunks - 1, slot >= 0


@triton.jit
def _values(x, at, here, place, width: tl.constexpr, wanted):
    """A chunk's values `[C, BLOCK]` of x `[B T, Hv, V]` for some columns; zero for tokens that are not there."""
    start, HEADS, head = place
    rows, columns = at
    places = (start * HEADS + head) * width + rows[:, None] * HEADS * width + columns[None, :]
    return tl.load(x + places, here[:, None] & wanted, 0).to(tl.float32)


@triton.jit
def _step(S, value, addition, operands, place, kinds: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr):
    """One chunk: `decay S + R^T (v - (k exp(G)) S)`, or, in REVERSE, `decay dS + D - (k exp(G))^T (dr + R dS)`.

    S is `[K, BLOCK]`, as is D; value, which is v or dr, `[C, BLOCK]`; kinds are GATED, CHANNELS and CORRECTS.
    """
    reads, kept, wholes = operands
    GATED: tl.constexpr = kinds[0]
    CHANNELS: tl.constexpr = kinds[1]
    CORRECTS: tl.constexpr = kinds[2]
    C: tl.constexpr = value.shape[0]
    K: tl.constexpr = S.shape[0]
    dtype: tl.constexpr = kept.dtype.element_ty
    of_keys = place * C * K + tl.arange(0, C)[:, None] * K + tl.arange(0, K)[None, :]
    if CHANNELS:
        after = S * tl.load(wholes + place * K + tl.arange(0, K))[:, None]
    elif GATED:
        after = S * tl.load(wholes + place)
    else:
        after = S
    if REVERSE:
        after += addition
        if CORRECTS:
            write, read = tl.load(kept + of_keys), tl.load(reads + of_keys)
            value = tl.dot(write, as_operand(S, dtype, PRECISION), value, input_precision=PRECISION)
            value = as_operand(-value, dtype, PRECISION)
            after = tl.dot(tl.trans(read), value, after, input_precision=PRECISION)
    else:
        write = tl.load(kept + of_keys)
        if CORRECTS:
            read = tl.load(reads + of_keys)
            value -= tl.dot(read, as_operand(S, dtype, PRECISION), input_precision=PRECISION)
        value = as_operand(value, dtype, PRECISION)
        after = tl.dot(tl.trans(write), value, after, input_precision=PRECISION)
    return after


@triton.jit(do_not_specialize=["T", "slots", "LENGTH"])
def compose_kernel(
    reads, kept, wholes, values, additions, initial, products, sums, bounds, T, slots, LENGTH, HEADS,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
    CHANNELS: tl.constexpr, CORRECTS: tl.constexpr, HAS_INITIAL: tl.constexpr, REVERSE: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A group's sums `[groups, Hv, K, V]` and products `[groups, Hv, K, K]`: `S_after = products S_before + sums`.

    A program takes BLOCK columns of one or the other. Where a sequence starts within a group, what was before it is
    replaced by its initial state. The rest is as in `states_kernel`.
    """
    group, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    of_values = block < V // BLOCK
    columns = block * BLOCK + tl.arange(0, BLOCK)
    at, channels = tl.arange(0, C), tl.arange(0, K)
    whole = channels[:, None] * V + columns[None, :]
    exists = (channels[:, None] >= 0) & of_values
    S = tl.where(channels[:, None] == columns[None, :] - V, 1.0, 0.0)
    first = group * LENGTH
    count = tl.minimum(LENGTH, slots - first)
    for n in range(count):
        slot = (first + (count - 1 - n if REVERSE else n)).to(tl.int64)
        start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
        sequence, begins, ends, _ = _edges(slot, slots, T, C, bounds, PACKED)
        if REVERSE:
            begins = ends
        if HAS_INITIAL:
            given = tl.load(initial + (sequence * HEADS + head).to(tl.int64) * K * V + whole, exists & begins, 0)
            S = tl.where(begins, given, S)
        else:
            S = tl.where(begins, 0.0, S)
        place = slot * HEADS + head
        addition = tl.zeros((K, BLOCK), tl.float32)
        value = tl.zeros((C, BLOCK), tl.float32)
        if REVERSE:
            addition = tl.load(additions + place * K * V + whole, exists, 0).to(tl.float32)
        if CORRECTS or not REVERSE:
            value = _values(values, (at, columns), at < tokens, (start, HEADS, head), V, of_values)
        kinds: tl.constexpr = (GATED, CHANNELS, CORRECTS)
        S = _step(S, value, addition, (reads, kept, wholes), place, kinds, REVERSE, PRECISION)
    place = group.to(tl.int64) * HEADS + head
    if of_values:
        tl.store(sums + place * K * V + whole, S)
    else:
        tl.store(products + place * K * K + channels[:, None] * K + columns[None, :] - V, S)


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
    reads, kept, wholes, values, additions, initial, starts, states, final, bounds, T, slots, LENGTH, HEADS,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
    CHANNELS: tl.constexpr, CORRECTS: tl.constexpr, HAS_STARTS: tl.constexpr, WANTS_FINAL: tl.constexpr,
    HAS_INITIAL: tl.constexpr, REVERSE: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """States before chunks, or gradients after them `[slots, Hv, K, V]`, and what is left of each sequence's.

    reads, kept and wholes are as in `prepare_kernel`, values are v or, in REVERSE, the gradient dr `[B T, Hv, V]`,
    additions, in REVERSE, what else chunks add `[slots, Hv, K, V]`. initial and final are `[sequences, Hv, K, V]` in
    float32, starts `[groups, Hv, K, V]`. A program takes BLOCK columns of a head's state through a group.
    """
    group, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    at, channels = tl.arange(0, C), tl.arange(0, K)
    whole = channels[:, None] * V + columns[None, :]
    S = tl.zeros((K, BLOCK), tl.float32)
    if HAS_STARTS:
        S = tl.load(starts + (group.to(tl.int64) * HEADS + head) * K * V + whole)
    first = group * LENGTH
    count = tl.minimum(LENGTH, slots - first)
    for n in range(count):
        slot = (first + (count - 1 - n if REVERSE else n)).to(tl.int64)
        start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
        sequence, begins, ends, exists = _edges(slot, slots, T, C, bounds, PACKED)
        outside = (sequence * HEADS + head).to(tl.int64) * K * V + whole
        if REVERSE:
            begins, ends = ends, begins
        if HAS_INITIAL:
            given = tl.load(initial + outside, (channels[:, None] >= 0) & begins, 0)
            S = tl.where(begins, given, S)
        else:
            S = tl.where(begins, 0.0, S)
        place = slot * HEADS + head
        tl.store(states + place * K * V + whole, S.to(states.dtype.element_ty))
        addition = S
        value = tl.zeros((C, BLOCK), tl.float32)
        if REVERSE:
            addition = tl.load(additions + place * K * V + whole).to(tl.float32)
        if CORRECTS or not REVERSE:
            value = _values(values, (at, columns), at < tokens, (start, HEADS, head), V, tokens > 0)
        kinds: tl.constexpr = (GATED, CHANNELS, CORRECTS)
        S = _step(S, value, addition, (reads, kept, wholes), place, kinds, REVERSE, PRECISION)
        if WANTS_FINAL:
            tl.store(final + outside, S, (channels[:, None] >= 0) & ends & exists)
