"""From what each chunk adds to the state at each chunk's start (or, backwards in time, at its end)."""

import triton
import triton.language as tl

__all__ = ["scan_kernel"]


@triton.jit
def _slot(first, last, step, STATES, state, REVERSE: tl.constexpr):
    return (last - 1 - step if REVERSE else first + step).to(tl.int64) * STATES + state


@triton.jit
def _load(
    states, gates, others, first, last, step, STATES, state, size, at, mask, C,
    GATED: tl.constexpr, REVERSE: tl.constexpr, WANTS_PRODUCTS: tl.constexpr,
):  # fmt: skip
    """A chunk's sums, its decay, and the other state before it."""
    slot, exists = _slot(first, last, step, STATES, state, REVERSE), step < last - first
    sums = tl.load(states + slot * size + at, mask & exists, 0)
    decay = tl.exp2(tl.load(gates + slot * C + C - 1, exists, 0)) if GATED else 1.0
    other = sums
    if WANTS_PRODUCTS:
        other = tl.load(others + slot * size + at, mask & exists, 0)
    return sums, decay, other


@triton.jit
def scan_kernel(
    states, gates, initial, final, others, products, weights, sequence_slots, slots_per_row, C, size, STATES, blocks,
    BLOCK: tl.constexpr, GATED: tl.constexpr, HAS_INITIAL: tl.constexpr, WANTS_FINAL: tl.constexpr,
    REVERSE: tl.constexpr, WANTS_PRODUCTS: tl.constexpr, WEIGHTED: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """`states [slots, Hs, size]` in place: sums become what stands before them.

    initial and final are `[rows, Hs, size]`, float32.

    Backwards in time, `products [slots, Hs, blocks]` can be had: of states `others` before chunks with the gradients
    after them, and the chunks' decay, by blocks. weights `[rows]` say how often a row counts, where WEIGHTED.
    """
    block, row, state = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    if PACKED:
        first, last = tl.load(sequence_slots + row), tl.load(sequence_slots + row + 1)
    else:
        first, last = row * slots_per_row, (row + 1) * slots_per_row
    at = block * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    carry = tl.zeros((BLOCK,), tl.float32)
    if HAS_INITIAL:
        carry = tl.load(initial + (row * STATES + state) * size + at, mask, 0)
    weight = 1.0
    if WEIGHTED:
        rows = size // (V + 1)
        weight = tl.load(weights + tl.where(at < rows * V, at // V, at - rows * V), mask, 0)
    # A chunk's loads are under way before the stores to the one before: the compiler must assume that those are to the
    # same place, and would wait for them.
    ahead, ahead_decay, ahead_other = _load(
        states, gates, others, first, last, 0, STATES, state, size, at, mask, C, GATED, REVERSE, WANTS_PRODUCTS
    )
    for step in range(0, last - first):
        sums, decay, other = ahead, ahead_decay, ahead_other
        ahead, ahead_decay, ahead_other = _load(
            states, gates, others, first, last, step + 1, STATES, state, size, at, mask, C,
            GATED, REVERSE, WANTS_PRODUCTS,
        )  # fmt: skip
        slot = _slot(first, last, step, STATES, state, REVERSE)
        tl.store(states + slot * size + at, carry.to(states.dtype.element_ty), mask)
        if WANTS_PRODUCTS:
            tl.store(products + slot * blocks + block, tl.sum(carry * other.to(tl.float32) * weight, 0) * decay)
        carry = carry * decay + sums.to(tl.float32)
    if WANTS_FINAL:
        tl.store(final + (row * STATES + state) * size + at, carry, mask)
