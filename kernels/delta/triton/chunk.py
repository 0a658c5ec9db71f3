"""What kernels over chunks begin with: tokens, decays to and from the chunk's ends, and scores of pairs of tokens.

A chunk is its first token as a row of `[B T]`, its number of tokens and its value head; heads are those that share a
value head's tokens, and value heads.
"""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.gates import decay_between, head_sums
from zoo.kernels.delta.triton.scores import channel_scores

__all__ = ["boundary_decays", "chunk_scores", "chunk_sums", "load_shared"]


@triton.jit
def load_shared(x, at, chunk, heads, channels, K: tl.constexpr):
    """Some channels of a chunk's tokens `[C, BLOCK]` of x `[B T, heads, K]`, zeros past the last token."""
    start, tokens, head = chunk
    SHARED, HEADS = heads
    x += start * SHARED * K + head * SHARED // HEADS * K
    return tl.load(x + at[:, None] * SHARED * K + channels[None, :], (at < tokens)[:, None], 0)


@triton.jit
def chunk_sums(log_g, at, chunk, HEADS, LOWEST: tl.constexpr, GATED: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums of a head's gates `[C]`, float64; anything, if it has none, or its channels have."""
    start, tokens, head = chunk
    total = at
    if GATED and not CHANNELS:
        total = head_sums(log_g + start * HEADS + head, at, at < tokens, HEADS, LOWEST)
    return total


@triton.jit
def chunk_scores(
    readers, keys, total, gates, LEVELS: tl.constexpr, GATED: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What readers read of keys `[C, C]`, zero of later ones; gates point to the sums of channels' of the chunk."""
    if CHANNELS:
        scores = channel_scores(readers, keys, gates, LEVELS, PRECISION)
    else:
        at = tl.arange(0, readers.shape[0])
        scores = tl.dot(readers, tl.trans(keys), input_precision=PRECISION)
        if GATED:
            scores *= decay_between(total)
        scores = tl.where(at[:, None] >= at[None, :], scores, 0.0)
    return scores


@triton.jit
def boundary_decays(at, total, gates, channels, CHANNELS: tl.constexpr):
    """Decays from the chunk's start to each token, from it to the end, both as factors on `[C, BLOCK]`, and of all."""
    sums, stride, tokens = gates
    if CHANNELS:
        total = tl.load(sums + at[:, None] * stride + channels[None, :], (at < tokens)[:, None], 0)
        end = tl.load(sums + tl.maximum(tokens - 1, 0) * stride + channels, (channels >= 0) & (tokens > 0), 0)
        from_start, to_end = tl.exp2(total.to(tl.float32)), tl.exp2((end[None, :] - total).to(tl.float32))
    else:
        end = tl.sum(tl.where(at == at.shape[0] - 1, total, 0), 0)
        from_start = tl.exp2(total.to(tl.float32))[:, None]
        to_end = tl.exp2((end - total).to(tl.float32))[:, None]
    return from_start, to_end, tl.exp2(end.to(tl.float32))
