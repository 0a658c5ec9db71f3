"""Chunks as affine maps of the state before them, one after the other: `S <- decay S + A + Q^T Y + L^T E (X + M S)`.

Programs hold states with columns first, `S^T [BLOCK, K]`: products then have as many rows as Hopper's tensor cores
take at a time, and what one product gives is the left operand of the next one, which those take from registers.

A step is short, so nothing in it may wait for memory. The compiler loads operands of products some steps ahead, and
with them what a product is subtracted from, but not the sum that one begins with: so X is never such a sum. A head's
decay is loaded by the step before, and all else before the first product.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.operands import as_operand

__all__ = [
    "begin", "decay_of_chunk", "decays_of_channels", "enter_chunk", "factors_of_tokens", "load_columns", "load_rows",
    "read_state", "solve_columns", "write_state",
]  # fmt: skip


@triton.jit
def _slot(n, group, REVERSE: tl.constexpr):
    """That of the nth chunk of a group on the way."""
    first, count = group
    return first + (count - 1 - n if REVERSE else n)


@triton.jit
def enter_chunk(n, group, sizes, bounds, REVERSE: tl.constexpr, PACKED: tl.constexpr):
    """The nth chunk of a group on the way: its slot, first token, tokens and sequence, and whether it is the first on
    the way and the last of that."""
    slots, T, C = sizes
    slot = _slot(n, group, REVERSE)
    if PACKED:
        bounds += slot * 4
        start = tl.load(bounds)
        tokens = tl.load(bounds + 1) - start
        begins = tl.load(bounds + 2) == 0
        ends = tl.load(bounds + 6, slot + 1 < slots, 0) == 0
        sequence = tl.load(bounds + 3).to(tl.int64)
        start = start.to(tl.int64)
    else:
        chunks = tl.cdiv(T, C)
        row = slot // chunks  # of 32 bits: one of 64 takes as long as a product
        place = slot - row * chunks
        sequence = row.to(tl.int64)
        start = sequence * T + place * C
        tokens = tl.minimum(C, T - place * C)
        begins = place == 0
        ends = place == chunks - 1
    if REVERSE:
        begins, ends = ends, begins
    return slot.to(tl.int64), start, tokens, sequence, begins, ends


@triton.jit
def begin(S, initial, places, begins, HAS_INITIAL: tl.constexpr):
    """S^T, or what its sequence begins with; places is of `[BLOCK, K]` and where there are any."""
    if HAS_INITIAL:
        return tl.where(begins, tl.load(initial + places[0], places[1] & begins, 0), S)
    return tl.where(begins, 0.0, S)


@triton.jit
def decay_of_chunk(decays, n, group, heads, kinds: tl.constexpr):
    """What a head's state keeps over the nth chunk of a group on the way, or over the last; anything, if it has none.

    kinds are GATED, CHANNELS, C and REVERSE.
    """
    head, HEADS = heads
    slot = _slot(tl.minimum(n, group[1] - 1), group, kinds[3]).to(tl.int64)
    decay = tl.full((), 1.0, tl.float32)
    if kinds[0] and not kinds[1]:
        decay = tl.load(decays + (slot * HEADS + head) * kinds[2] + kinds[2] - 1)
    return decay


@triton.jit
def decays_of_channels(decays, place, decay, K: tl.constexpr, CHANNELS: tl.constexpr):
    """What each of CHANNELS keeps over a chunk, a factor of `[BLOCK, K]`; else decay, what all of them do."""
    if CHANNELS:
        decay = tl.load(decays + place * K + tl.arange(0, K))[None, :]
    return decay


@triton.jit
def factors_of_tokens(factors, place, C: tl.constexpr, THERE: tl.constexpr):
    """Of factors `[slots, Hv, C]` those of a chunk, a factor of `[BLOCK, C]`; 1, if they are not THERE."""
    factor = 1.0
    if THERE:
        factor = tl.load(factors + place * C + tl.arange(0, C))[None, :]
    return factor


@triton.jit
def load_rows(x, chunk, SHARED, C: tl.constexpr, K: tl.constexpr, OF_TOKENS: tl.constexpr):
    """`[C, K]` of a chunk, from x `[slots, Hv, C, K]`, or of tokens, from x `[B T, SHARED, K]`: zeros past the last."""
    place, start, tokens, head, HEADS = chunk
    at, channels = tl.arange(0, C), tl.arange(0, K)
    if OF_TOKENS:
        x += (start * SHARED + head * SHARED // HEADS) * K
        found = tl.load(x + at[:, None] * SHARED * K + channels[None, :], (at < tokens)[:, None], 0)
    else:
        found = tl.load(x + place * C * K + at[:, None] * K + channels[None, :])
    return found


@triton.jit
def load_columns(x, chunk, columns, here, C: tl.constexpr, V: tl.constexpr):
    """Some columns of a chunk's tokens `[BLOCK, C]`, of x `[B T, Hv, V]`, zeros past the last one, or if not here."""
    _, start, tokens, head, HEADS = chunk
    at = tl.arange(0, C)
    x += (start * HEADS + head) * V
    return tl.load(x + at[None, :] * HEADS * V + columns[:, None], (at < tokens)[None, :] & here, 0)


@triton.jit
def read_state(S, value, rows, factor, SCALED: tl.constexpr, PRECISION: tl.constexpr):
    """`X + M S`, with columns first `[BLOCK, C]`, from X and rows of M, or, SCALED, what times -factor is M."""
    read = tl.trans(rows)
    if SCALED:
        value -= factor * tl.dot(as_operand(S, rows.dtype, PRECISION), read, input_precision=PRECISION)
    else:
        value -= tl.dot(as_operand(-S, rows.dtype, PRECISION), read, input_precision=PRECISION)
    return value


@triton.jit
def solve_columns(value, inverses, place, PARTS: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr):
    """`(1 + A)^-1` times a value, or in REVERSE its transpose, with columns first `[BLOCK, C]`.

    inverses `[slots, Hv, PARTS, C, C]` are sums of PARTS.
    """
    C: tl.constexpr = value.shape[1]
    at = tl.arange(0, C)
    x = as_operand(value, inverses.dtype.element_ty, PRECISION)
    found = tl.zeros(value.shape, tl.float32)
    for part in tl.static_range(PARTS):
        inverse = tl.load(inverses + (place * PARTS + part) * C * C + at[:, None] * C + at[None, :])
        if not REVERSE:
            inverse = tl.trans(inverse)
        found = tl.dot(x, inverse, found, input_precision=PRECISION)
    return found


@triton.jit
def write_state(S, value, rows, PRECISION: tl.constexpr):
    """`S + L^T value`, with columns first, from rows of L `[C, K]`."""
    return tl.dot(as_operand(value, rows.dtype, PRECISION), rows, S, input_precision=PRECISION)
