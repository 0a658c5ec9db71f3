"""Gradient of the gates: sums over later tokens of `(q . dq - k . dk) / p`, restarted at every boundary.

Terms of a pair of tokens cancel in it, and their rounding does not; so sums end with the chunk, and what crosses its
end is the product of the state there and its gradient.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds

__all__ = ["gate_gradient_kernel"]


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


@triton.jit
def _segmented(x, cut, y, cut_here):
    return tl.where(cut_here > 0, y, x + y), cut | cut_here


@triton.jit(do_not_specialize=["T"])
def gate_gradient_kernel(
    q_along, k_along, log_g, crossing, dlog_g, bounds, T, C, STATES, OUTPUTS, HEADS,
    BLOCK: tl.constexpr, LOWEST: tl.constexpr, HAS_CROSSING: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dlog_g `[B T, Hv]` float32; crossing `[slots, Hs]` is what comes from beyond a chunk's end."""
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    carry = tl.zeros((1,), tl.float64)
    if HAS_CROSSING:
        for state in range(head * (STATES // HEADS), (head + 1) * (STATES // HEADS)):
            carry += tl.load(crossing + slot * STATES + state)

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
