"""Gradient of the gates: at each token the sum, over pairs of an earlier token and one not earlier, of what they give.

What a pair in one chunk gives is added to `q . dq / p` of its later token and to `k . dk / p` of its earlier one, so
that sums over later tokens of their difference are left with the pairs wanted. The rest cancels: to float32's digits,
because both sides come from the same float32 products. States are rounded, so what they give must not have to cancel:
pairs with an earlier chunk add up over later queries, those with a later chunk over earlier keys, and those around the
whole chunk are the product of the state before it and the gradient after it. All sums restart at every boundary.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds

__all__ = ["gate_gradient_kernel"]


@triton.jit
def _load(along, slot, head, at, exists, C, COUNT, HEADS):
    """Sums over the heads that share a gate, float64."""
    result = tl.zeros(at.shape, tl.float64)
    for index in range(head * (COUNT // HEADS), (head + 1) * (COUNT // HEADS)):
        result += tl.load(along + (slot * COUNT + index) * C + at, exists, 0)
    return result


@triton.jit
def _segmented(x, cut, y, cut_here):
    return tl.where(cut_here > 0, y, x + y), cut | cut_here


@triton.jit(do_not_specialize=["T", "SLOTS", "STATES", "OUTPUTS", "HEADS"])
def gate_gradient_kernel(
    q_along, k_along, log_g, crossing, dlog_g, bounds, T, C, SLOTS, STATES, OUTPUTS, HEADS, PARTS,
    BLOCK: tl.constexpr, LOWEST: tl.constexpr, HAS_CROSSING: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dlog_g `[B T, Hv]` float32, from `q . dq / p` `[2, slots, Ho, C]` and `k . dk / p` `[2, slots, Hs, C]`: the
    chunk's part and the states'; crossing `[slots, Hs, PARTS]` adds up to that of tokens before the chunk with those
    after it.
    """
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    log_g += start * HEADS + head
    dlog_g += start * HEADS + head
    of_states = slot + SLOTS
    blocks = tl.cdiv(tokens, BLOCK)

    # Forwards: earlier keys with later chunks.
    carry = tl.zeros((1,), tl.float64)
    for step in range(0, blocks):
        at = step * BLOCK + tl.arange(0, BLOCK)
        before = (at > 0) & (at < tokens)
        boundary = (tl.load(log_g + at * HEADS, at < tokens, 0) <= LOWEST).to(tl.int32)
        values = _load(k_along, of_states, head, at - 1, before & (boundary == 0), C, STATES, HEADS)
        sums, cuts = tl.associative_scan((values, boundary), 0, _segmented)
        sums += tl.where(cuts == 0, carry, 0.0)
        tl.store(dlog_g + at * HEADS, sums.to(tl.float32), at < tokens)
        carry = carry * 0 + tl.sum(tl.where(at == (step + 1) * BLOCK - 1, sums, 0.0), 0)

    tl.debug_barrier()  # other threads read what these have written
    # Backwards: pairs in the chunk, and later queries with earlier chunks.
    carry = tl.zeros((1,), tl.float64)
    if HAS_CROSSING:
        for state in range(head * (STATES // HEADS), (head + 1) * (STATES // HEADS)):
            for first in range(0, PARTS, BLOCK):
                part = first + tl.arange(0, BLOCK)
                parts = tl.load(crossing + (slot * STATES + state) * PARTS + part, part < PARTS, 0)
                carry += tl.sum(parts.to(tl.float64), 0)
    for step in range(0, blocks):
        first = (blocks - 1 - step) * BLOCK
        at = first + tl.arange(0, BLOCK)
        exists = at < tokens
        values = _load(q_along, slot, head, at, exists, C, OUTPUTS, HEADS)
        values += _load(q_along, of_states, head, at, exists, C, OUTPUTS, HEADS)
        values -= _load(k_along, slot, head, at, exists, C, STATES, HEADS)
        boundary = tl.load(log_g + at * HEADS, exists, 0) <= LOWEST
        cut = (tl.load(log_g + (at + 1) * HEADS, at + 1 < tokens, 0) <= LOWEST).to(tl.int32)
        sums, cuts = tl.associative_scan((values, cut), 0, _segmented, reverse=True)
        sums += tl.where(cuts == 0, carry, 0.0)
        total = sums.to(tl.float32) + tl.load(dlog_g + at * HEADS, exists, 0)
        tl.store(dlog_g + at * HEADS, tl.where(boundary, 0.0, total), exists)
        # The block's first token passes its sum on, unless a boundary stands there.
        carry = carry * 0 + tl.sum(tl.where((at == first) & (boundary == 0), sums, 0.0), 0)
