"""Decays within a chunk: gates' logs summed since its start, in base 2, and differences taken before they are powers.

A head's gates are summed in float64, where they are needed; channels' gates once, by a kernel of their own.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds

__all__ = ["decay_between", "gate_sums_kernel", "head_sums"]


@triton.jit
def _log2(log_g, LOWEST: tl.constexpr):
    """Natural logs in base 2, float64; what is less than LOWEST, whose power is zero, is LOWEST."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    return tl.maximum(log_g, LOWEST, propagate_nan=tl.PropagateNan.ALL).to(tl.float64) * LOG2_E


@triton.jit
def head_sums(log_g, at, here, HEADS, LOWEST: tl.constexpr):
    """The sums `[C]` of a head's gates since the chunk's start, float64; log_g points to its first token's."""
    return tl.cumsum(_log2(tl.load(log_g + at * HEADS, here, 0), LOWEST), 0)


@triton.jit
def decay_between(sums):
    """`[C, C]` from key j to reader i >= j; one where i < j. What rounding takes from sums is not lost."""
    high = sums.to(tl.float32)
    low = (sums - high).to(tl.float32)
    exponents = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    return tl.exp2(tl.minimum(exponents, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit(do_not_specialize=["T", "HEADS"])
def gate_sums_kernel(
    log_g, sums, bounds, T, HEADS,
    C: tl.constexpr, K: tl.constexpr, LOWEST: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Channels' gates log_g `[B T, Hv, K]` summed since each chunk's start: sums `[B T, Hv, K]`, of base 2."""
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    at, channels = tl.arange(0, C), tl.arange(0, K)
    places = (start * HEADS + head) * K + at[:, None] * HEADS * K + channels[None, :]
    here = (at < tokens)[:, None]
    found = tl.cumsum(_log2(tl.load(log_g + places, here, 0), LOWEST), 0)
    tl.store(sums + places, found.to(sums.dtype.element_ty), here)
