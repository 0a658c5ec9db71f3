"""Gradient of the gates: sums over later tokens, restarted at every boundary."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds

__all__ = ["gate_gradient_kernel", "gate_tails_kernel"]


@triton.jit
def _load(
    q_along, k_along, log_g, slot, head, start, at, tokens, C, STATES, OUTPUTS, HEADS, LOWEST: tl.constexpr
):  # fmt: skip
    """Gradients of the summed gates at the tokens `at` of a chunk, float64, and whether a boundary stands there."""
    exists = at < tokens
    result = tl.zeros(at.shape, tl.float64)
    for output in range(head * (OUTPUTS // HEADS), (head + 1) * (OUTPUTS // HEADS)):
        result += tl.load(q_along + (slot * OUTPUTS + output) * C + at, exists, 0)
    for state in range(head * (STATES // HEADS), (head + 1) * (STATES // HEADS)):
        result -= tl.load(k_along + (slot * STATES + state) * C + at, exists, 0)
    gate = tl.load(log_g + (start + at) * HEADS + head, exists, 0)
    return result, gate <= LOWEST


@triton.jit(do_not_specialize=["T"])
def gate_tails_kernel(
    q_along, k_along, log_g, tails, closed, bounds, T, C, STATES, OUTPUTS, HEADS,
    BLOCK: tl.constexpr, LOWEST: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """What a chunk gives to gates before it: tails `[slots, Hv]` float64, and closed, whether it has a boundary."""
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    tail = tl.zeros((1,), tl.float64)
    open = tl.full((1,), 1, tl.int32)
    for first in range(0, tokens, BLOCK):
        at = first + tl.arange(0, BLOCK)
        values, boundary = _load(
            q_along, k_along, log_g, slot, head, start, at, tokens, C, STATES, OUTPUTS, HEADS, LOWEST
        )
        before = tl.cumsum(boundary.to(tl.int32), 0) == 0
        tail += tl.where(open > 0, tl.sum(tl.where(before, values, 0.0), 0), 0.0)
        open = tl.where(tl.sum(boundary.to(tl.int32), 0) > 0, 0, open)
    index = slot * HEADS + head + tl.arange(0, 1)
    tl.store(tails + index, tail)
    tl.store(closed + index, 1 - open)


@triton.jit
def _segmented(x, cut, y, cut_here):
    return tl.where(cut_here > 0, y, x + y), cut | cut_here


@triton.jit(do_not_specialize=["T"])
def gate_gradient_kernel(
    q_along, k_along, log_g, tails, closed, final, dlog_g, bounds, sequence_slots, T, C, STATES, OUTPUTS, HEADS,
    BLOCK: tl.constexpr, LOWEST: tl.constexpr, HAS_FINAL: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dlog_g `[B T, Hv]` float32; final `[rows, Hv]` float64 is what the outgoing state gives to the last token."""
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    if PACKED:
        row = tl.load(bounds + slot * 4 + 3).to(tl.int64)
        end = tl.load(sequence_slots + row + 1).to(tl.int64)
    else:
        row = slot // tl.cdiv(T, C)
        end = (row + 1) * tl.cdiv(T, C)
    # What comes from later chunks, up to the next boundary.
    one = tl.arange(0, 1)
    carry = tl.zeros((1,), tl.float64)
    open = tl.full((1,), 1, tl.int32)
    for later in range(slot + 1, end):
        carry += tl.where(open > 0, tl.load(tails + later * HEADS + head + one), 0.0)
        open *= 1 - tl.load(closed + later * HEADS + head + one)
    if HAS_FINAL:
        carry += tl.where(open > 0, tl.load(final + row * HEADS + head + one), 0.0)

    blocks = tl.cdiv(tokens, BLOCK)
    for step in range(0, blocks):
        at = (blocks - 1 - step) * BLOCK + tl.arange(0, BLOCK)
        values, boundary = _load(
            q_along, k_along, log_g, slot, head, start, at, tokens, C, STATES, OUTPUTS, HEADS, LOWEST
        )
        next_gate = tl.load(log_g + (start + at + 1) * HEADS + head, at + 1 < tokens, 0)
        cut = (next_gate <= LOWEST).to(tl.int32)
        sums, cuts = tl.associative_scan((values, cut), 0, _segmented, reverse=True)
        sums += tl.where(cuts == 0, carry, 0.0)
        tl.store(dlog_g + (start + at) * HEADS + head, tl.where(boundary, 0.0, sums).to(tl.float32), at < tokens)
        # The block's first token passes its sum on, unless a boundary stands there.
        first = at == (blocks - 1 - step) * BLOCK
        carry = carry * 0 + tl.sum(tl.where(first & (boundary == 0), sums, 0.0), 0)
