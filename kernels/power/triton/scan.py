# mypy: ignore-errors
"""From what each chunk adds to the state at each chunk's start (or, backwards in time, at its end)."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.monomials import pair_weights
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["scan_kernel"]


@triton.jit
def _slot(first, last, step, STATES, state, REVERSE: tl.constexpr):
    return (last - 1 - step if REVERSE else first + step).to(tl.int64) * STATES + state


@triton.jit
def _load(
    sums, gates, others, first, last, step, STATES, state, size, at, mask, C,
    GATED: tl.constexpr, REVERSE: tl.constexpr, WANTS_PRODUCTS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Of AHEAD chunks: their sums, their decays, and the other states before them."""
    added, decays, other = (), (), ()
    for i in tl.static_range(AHEAD):
        slot, exists = _slot(first, last, step + i, STATES, state, REVERSE), step + i < last - first
        added = added + (tl.load(sums + slot * size + at, mask & exists, 0),)
        decays = decays + (tl.exp2(tl.load(gates + slot * C + C - 1, exists, 0)) if GATED else 1.0,)
        if WANTS_PRODUCTS:
            other = other + (tl.load(others + slot * size + at, mask & exists, 0),)
    return added, decays, other


@triton.jit(do_not_specialize=["slots_per_row", "STATES"])
def scan_kernel(
    sums, states, gates, initial, final, others, products, weights, sequence_slots, slots_per_row, C, size, live,
    STATES, blocks,
    BLOCK: tl.constexpr, GATED: tl.constexpr, HAS_INITIAL: tl.constexpr, WANTS_FINAL: tl.constexpr,
    REVERSE: tl.constexpr, WANTS_PRODUCTS: tl.constexpr, WEIGHTED: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    P: tl.constexpr, INNER: tl.constexpr, PACKED: tl.constexpr, IN_PLACE: tl.constexpr, AHEAD: tl.constexpr,
    PRECISION: tl.constexpr,
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
    added, decays, other = _load(
        sums, gates, others, first, last, 0, STATES, state, size, at, mask, C, GATED, REVERSE, WANTS_PRODUCTS, AHEAD
    )
    for step in range(0, last - first, AHEAD):
        next_added, next_decays, next_other = _load(
            sums, gates, others, first, last, step + AHEAD, STATES, state, size, at, mask, C,
            GATED, REVERSE, WANTS_PRODUCTS, AHEAD,
        )  # fmt: skip
        for i in tl.static_range(AHEAD):
            slot, exists = _slot(first, last, step + i, STATES, state, REVERSE), step + i < last - first
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
