"""Decays within a chunk: their logs summed since its start, in base 2, and where tokens forget all before them."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds

__all__ = ["boundary_decays", "decay_sums_kernel", "forgotten", "load_rows"]


@triton.jit
def load_rows(x, at, tokens, stride, WIDTH: tl.constexpr):
    """`[C, WIDTH]` of a chunk's tokens, zeros past its last; x points to its first."""
    return tl.load(x + at[:, None] * stride + tl.arange(0, WIDTH)[None, :], (at < tokens)[:, None], 0)


@triton.jit
def forgotten(log_w, at, tokens, stride, LOWEST: tl.constexpr, BOUNDED: tl.constexpr):
    """How often all was forgotten up to each token of a chunk `[C]`, and up to its end; log_w points to its first.

    If decays are BOUNDED, those of a token that forgets are left out of sums, and all its channels have them.
    """
    counts = tl.zeros(at.shape, tl.int32)
    if BOUNDED:
        marks = tl.load(log_w + at * stride, at < tokens, 0) <= LOWEST
        counts = tl.cumsum(marks.to(tl.int32), 0)
    return counts, tl.max(counts, 0)


@triton.jit
def boundary_decays(sums, at, gates, counts, BOUNDED: tl.constexpr):
    """Decays from a chunk's start to each token's r and to its kappa, from each token to the end, and of all of it.

    The first three are `[C, K]`, the last `[K]`; sums point to the first token's of these channels, gates are their
    stride and the chunk's number of tokens, counts are as `forgotten` gives them.
    """
    stride, tokens, channels = gates
    counts, last = counts
    here = (at < tokens)[:, None]
    places = sums + at[:, None] * stride + channels[None, :]
    total = tl.load(places, here, 0)
    before = tl.load(places - stride, here & (at > 0)[:, None], 0)
    end = tl.load(sums + (tokens - 1) * stride + channels)
    to_r, to_kappa = tl.exp2(total.to(tl.float32)), tl.exp2(before.to(tl.float32))
    to_end, whole = tl.exp2((end[None, :] - total).to(tl.float32)), tl.exp2(end.to(tl.float32))
    if BOUNDED:
        fresh = (counts > 0)[:, None]
        to_r, to_kappa = tl.where(fresh, 0.0, to_r), tl.where(fresh, 0.0, to_kappa)
        to_end, whole = tl.where((counts < last)[:, None], 0.0, to_end), tl.where(last > 0, 0.0, whole)
    return to_r, to_kappa, to_end, whole


@triton.jit(do_not_specialize=["T"])
def decay_sums_kernel(
    log_w, sums, T, HEADS, C: tl.constexpr, K: tl.constexpr, LOWEST: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """Log decays `[B T, H, K]` summed since each chunk's start: sums of that shape, of base 2."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, sums, False)
    at, channels = tl.arange(0, C), tl.arange(0, K)
    places = (start * HEADS + head) * K + at[:, None] * HEADS * K + channels[None, :]
    here = (at < tokens)[:, None]
    given = tl.load(log_w + places, here, 0)
    if BOUNDED:
        given = tl.where(given <= LOWEST, 0.0, given)
        found = tl.cumsum(given.to(sums.dtype.element_ty) * LOG2_E, 0)
    else:
        given = tl.maximum(given, LOWEST, propagate_nan=tl.PropagateNan.ALL)
        found = tl.cumsum(given.to(tl.float64) * LOG2_E, 0)
    tl.store(sums + places, found.to(sums.dtype.element_ty), here)
