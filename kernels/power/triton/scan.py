# mypy: ignore-errors
"""From what each chunk adds to the state at each chunk's start (or, backwards in time, at its end)."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.decay import small_power
from zoo.kernels.power.triton.monomials import pair_weights
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["scan_kernel"]


@triton.jit
def _row(chunks, step, REVERSE: tl.constexpr):
    """The state's place among those of all slots.

    chunks: of one sequence, the first's slot and the last one's + 1, and which of STATES states it is. A plain tuple,
    for the reason that `from_state` gives.
    """
    first, last, state, STATES = chunks
    slot = last - 1 - step if REVERSE else first + step
    return slot.to(tl.int64) * STATES + state


@triton.jit
def _load(
    sources, chunks, step, at, mask,
    GATED: tl.constexpr, EXACT_GATES: tl.constexpr, REVERSE: tl.constexpr, WANTS_PRODUCTS: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Of AHEAD chunks: their sums, their decays, and the other states before them.

    sources: pointers to sums, gates (high and low parts) and other states, the size of a state, and C.
    """
    sums, gates, gates_low, others, size, C = sources
    added, decays, other = (), (), ()
    for i in tl.static_range(AHEAD):
        row, exists = _row(chunks, step + i, REVERSE), step + i < chunks[1] - chunks[0]
        added = added + (tl.load(sums + row * size + at, mask & exists, 0),)
        decay = tl.exp2(tl.load(gates + row * C + C - 1, exists, 0)) if GATED else 1.0
        if EXACT_GATES:
            decay *= small_power(tl.load(gates_low + row * C + C - 1, exists, 0))
        decays = decays + (decay,)
        if WANTS_PRODUCTS:
            other = other + (tl.load(others + row * size + at, mask & exists, 0),)
    return added, decays, other


@triton.jit(do_not_specialize=["slots_per_row", "STATES"])
def scan_kernel(
    sums, states, gates, gates_low, initial, final, others, products, weights, sequence_slots, slots_per_row, C, size,
    live, STATES, blocks,
    BLOCK: tl.constexpr, GATED: tl.constexpr, EXACT_GATES: tl.constexpr, HAS_INITIAL: tl.constexpr,
    WANTS_FINAL: tl.constexpr, REVERSE: tl.constexpr, WANTS_PRODUCTS: tl.constexpr, WEIGHTED: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, PACKED: tl.constexpr,
    IN_PLACE: tl.constexpr, AHEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What stands before each chunk's sums `[slots, Hs, size]`, in states of that shape or IN_PLACE.

    initial and final are `[rows, Hs, size]`, float32. AHEAD chunks are loaded at once. Of a state only the first `live`
    numbers are read and written.

    Backwards in time, `products [slots, Hs, blocks]` can be had: of states `others` before chunks with the gradients
    after them, and the chunks' decay, by blocks. weights `[rows]` say how often a row counts, where WEIGHTED and P > 2.
    """
    block, row, state = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    if PACKED:
        first, last = tl.load(sequence_slots + row), tl.load(sequence_slots + row + 1)
    else:
        first, last = row * slots_per_row, (row + 1) * slots_per_row
    at = block * BLOCK + tl.arange(0, BLOCK)
    mask = at < live
    before = sums if IN_PLACE else states
    carry = tl.zeros((BLOCK,), tl.float32)
    if HAS_INITIAL:
        carry = tl.load(initial + (row * STATES + state) * size + at, mask, 0)
    weight = 1.0
    if WEIGHTED:
        rows = size // (V + 1)
        tiled = tl.where(at < rows * V, at // V, at - rows * V)
        weight = pair_weights(tiled, K, INNER) if P == 2 else tl.load(weights + tiled, mask, 0)
    # Chunks' loads are under way before the stores to those before them: the compiler must assume that those are to the
    # same place, and would wait for them.
    sources, chunks = (sums, gates, gates_low, others, size, C), (first, last, state, STATES)
    added, decays, other = _load(sources, chunks, 0, at, mask, GATED, EXACT_GATES, REVERSE, WANTS_PRODUCTS, AHEAD)
    for step in range(0, last - first, AHEAD):
        next_added, next_decays, next_other = _load(
            sources, chunks, step + AHEAD, at, mask, GATED, EXACT_GATES, REVERSE, WANTS_PRODUCTS, AHEAD
        )
        for i in tl.static_range(AHEAD):
            slot, exists = _row(chunks, step + i, REVERSE), step + i < last - first
            rounded = as_operand(carry, before.dtype.element_ty, PRECISION)
            tl.store(before + slot * size + at, rounded, mask & exists)
            if WANTS_PRODUCTS:
                product = tl.sum(carry * other[i].to(tl.float32) * weight, 0) * decays[i]
                tl.store(products + slot * blocks + block, product, exists)
            # A chunk that does not exist has no sums, and its decay is 1.
            carry = carry * decays[i] + added[i].to(tl.float32)
        added, decays, other = next_added, next_decays, next_other
    if WANTS_FINAL:
        tl.store(final + (row * STATES + state) * size + at, carry, mask)
