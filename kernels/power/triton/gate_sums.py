"""Gates summed since a chunk's start, and what is left of each token at its end.

A kernel, and not the compiler's: sums are float64, and some versions of the compiler fail at sums over more than 1,024
tokens of what depends on the head alone, such as a decay by head.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds

__all__ = ["gate_sums_kernel"]


@triton.jit(do_not_specialize=["T", "VALUES"])
def gate_sums_kernel(
    log_g, gates, gates_low, left, bounds, T, C, VALUES, REPEATS,
    BLOCK: tl.constexpr, LOWEST: tl.constexpr, EXACT: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """From log_g `[B T, Hv]` sums of gates (of base 2), what is left, all `[slots, Hv REPEATS, C]` in float32.

    If EXACT, gates_low is what rounding left of the sums. Gates are at least LOWEST. Beyond a chunk's end their sum
    stays as it is, and nothing is left.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    log_g += start * VALUES + head // REPEATS
    row = (slot * VALUES * REPEATS + head) * C
    total = tl.zeros((1,), tl.float64)
    for first in range(0, tokens, BLOCK):
        total += tl.sum(_load(log_g, first + tl.arange(0, BLOCK), tokens, VALUES, LOWEST), 0)
    before = tl.zeros((1,), tl.float64)
    for first in range(0, C, BLOCK):
        at = first + tl.arange(0, BLOCK)
        log_gates = _load(log_g, at, tokens, VALUES, LOWEST)
        sums = before + tl.cumsum(log_gates, 0)
        exponents = sums * LOG2_E
        rounded = exponents.to(tl.float32)
        tl.store(gates + row + at, rounded, at < C)
        if EXACT:
            tl.store(gates_low + row + at, (exponents - rounded).to(tl.float32), at < C)
        share = tl.where(at < tokens, tl.exp2((total - sums) * LOG2_E), 0)
        tl.store(left + row + at, share.to(tl.float32), at < C)
        before += tl.sum(log_gates, 0)


@triton.jit
def _load(log_g, at, tokens, VALUES, LOWEST: tl.constexpr):
    log_gates = tl.load(log_g + at * VALUES, at < tokens, 0)
    return tl.maximum(log_gates, LOWEST, propagate_nan=tl.PropagateNan.ALL).to(tl.float64)
