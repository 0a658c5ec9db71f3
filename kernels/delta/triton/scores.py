"""What tokens of a chunk read of one another where each channel has a gate: `sum_c r_ic k_jc exp(G_ic - G_jc)`.

A chunk is halved, its halves are halved, and so on: every pair of tokens is parted by exactly one cut, and its decay
is the product of two, from the key to the cut and from the cut to the reader. Both are at most 1, so that nothing
overflows however strong the gates are, and each level is one product of all tokens of the chunk, half of them readers.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.operands import as_operand

__all__ = ["add_gradients", "channel_scores"]


@triton.jit
def _level(at, gates, s, K: tl.constexpr):
    """What parts halves of s tokens: decays to or from the cut `[C, K]`, which tokens read, and pairs of one cut.

    Sums of gates are loaded each time, which spares their registers.
    """
    base, stride, tokens = gates
    channels = tl.arange(0, K)
    cut = at // (2 * s) * (2 * s) + s - 1
    sums = tl.load(base + at[:, None] * stride + channels[None, :], (at < tokens)[:, None], 0)
    at_cut = tl.load(base + cut[:, None] * stride + channels[None, :], (cut < tokens)[:, None], 0)
    factor = tl.exp2(-tl.abs((sums - at_cut).to(tl.float32)))
    return factor, (at % (2 * s) >= s)[:, None], (at // (2 * s))[:, None] == (at // (2 * s))[None, :]


@triton.jit
def channel_scores(readers, keys, gates, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """`[C, C]` for readers and keys `[C, K]`, zero above the diagonal; gates point to the sums of the chunk."""
    at = tl.arange(0, readers.shape[0])
    SUMS: tl.constexpr = tl.float64 if keys.dtype == tl.float64 else tl.float32
    own = tl.sum(readers.to(SUMS) * keys.to(SUMS), 1)
    scores = tl.where(at[:, None] == at[None, :], own[:, None], 0.0)
    for level in range(LEVELS):  # not unrolled, for levels side by side spill registers
        size = 1 << level
        factor, reads, together = _level(at, gates, size, readers.shape[1])
        left = as_operand(tl.where(reads, readers * factor, 0.0), keys.dtype, PRECISION)
        right = as_operand(tl.where(reads, 0.0, keys * factor), keys.dtype, PRECISION)
        met = tl.dot(left, tl.trans(right), input_precision=PRECISION)
        scores += tl.where(together, met, 0.0)
    return scores


@triton.jit
def add_gradients(found, dscores, readers, keys, gates, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """Add to gradients of readers, of keys and of sums, all `[C, K]`, what comes from that of scores.

    What readers give to a sum and keys take from it meet in the same rounded products, so that they cancel.
    """
    dreaders, dkeys, dsums = found
    at = tl.arange(0, readers.shape[0])
    own = tl.sum(tl.where(at[:, None] == at[None, :], dscores, 0.0), 1)[:, None]
    dreaders += own * keys
    dkeys += own * readers
    for level in range(LEVELS):  # not unrolled, for levels side by side spill registers
        size = 1 << level
        factor, reads, together = _level(at, gates, size, readers.shape[1])
        left = as_operand(tl.where(reads, readers * factor, 0.0), keys.dtype, PRECISION)
        right = as_operand(tl.where(reads, 0.0, keys * factor), keys.dtype, PRECISION)
        parted = tl.where(together & reads & (at % (2 * size) < size)[None, :], dscores, 0.0)
        parted = as_operand(parted, keys.dtype, PRECISION)
        dleft = tl.dot(parted, right, input_precision=PRECISION)
        dright = tl.dot(tl.trans(parted), left, input_precision=PRECISION)
        dreaders += dleft * factor
        dkeys += dright * factor
        dsums += left * dleft - right * dright
    return dreaders, dkeys, dsums
