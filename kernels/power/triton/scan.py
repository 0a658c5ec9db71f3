"""From what each chunk adds to the state at each chunk's start (or, backwards in time, at its end)."""

import triton
import triton.language as tl

__all__ = ["scan_kernel"]


@triton.jit
def _slot(first, last, step, STATES, state, REVERSE: tl.constexpr):
    return (last - 1 - step if REVERSE else first + step).to(tl.int64) * STATES + state


@triton.jit
def _load(states, first, last, step, STATES, state, size, at, mask, REVERSE: tl.constexpr):
    slot = _slot(first, last, step, STATES, state, REVERSE)
    return tl.load(states + slot * size + at, mask & (step < last - first), 0)


@triton.jit
def _pass(
    carry, sums, states, gates, first, last, step, STATES, state, size, at, mask, C,
    GATED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Write what has been carried to a chunk, and carry it on through it."""
    slot, exists = _slot(first, last, step, STATES, state, REVERSE), step < last - first
    tl.store(states + slot * size + at, carry.to(states.dtype.element_ty), mask & exists)
    if GATED:
        carry *= tl.exp2(tl.load(gates + slot * C + C - 1, exists, 0))
    return carry + sums.to(tl.float32)


@triton.jit
def scan_kernel(
    states, gates, initial, final, sequence_slots, slots_per_row, C, size, STATES,
    BLOCK: tl.constexpr, GATED: tl.constexpr, HAS_INITIAL: tl.constexpr, WANTS_FINAL: tl.constexpr,
    REVERSE: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """`states [slots, Hs, size]` in place: sums become what stands before them; initial, final `[rows, Hs, size]` float32."""
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
    # Four chunks at a time: their loads are under way together, and only the sums wait for one another.
    chunks = last - first
    for step in range(0, chunks, 4):
        sums0 = _load(states, first, last, step, STATES, state, size, at, mask, REVERSE)
        sums1 = _load(states, first, last, step + 1, STATES, state, size, at, mask, REVERSE)
        sums2 = _load(states, first, last, step + 2, STATES, state, size, at, mask, REVERSE)
        sums3 = _load(states, first, last, step + 3, STATES, state, size, at, mask, REVERSE)
        carry = _pass(carry, sums0, states, gates, first, last, step, STATES, state, size, at, mask, C, GATED, REVERSE)
        carry = _pass(
            carry, sums1, states, gates, first, last, step + 1, STATES, state, size, at, mask, C, GATED, REVERSE
        )
        carry = _pass(
            carry, sums2, states, gates, first, last, step + 2, STATES, state, size, at, mask, C, GATED, REVERSE
        )
        carry = _pass(
            carry, sums3, states, gates, first, last, step + 3, STATES, state, size, at, mask, C, GATED, REVERSE
        )
    if WANTS_FINAL:
        tl.store(final + (row * STATES + state) * size + at, carry, mask)
