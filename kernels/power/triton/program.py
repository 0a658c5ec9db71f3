"""What a program of a kernel works on."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds

__all__ = ["load_keys", "locate", "start_of_keys"]


@triton.jit
def locate(BLOCKS, COLUMNS, HEADS, T, C, bounds, PACKED: tl.constexpr):
    """The part of a chunk, the block of columns of the result, the head and the chunk's slot that a program has.

    Programs of one head lie side by side, so that what they share is in the cache. Then, of the chunk, its first token
    as a row of `[B T]`, its number of tokens, and how many chunks precede it.
    """
    program = tl.program_id(0)
    part = program % BLOCKS
    column = program // BLOCKS % COLUMNS
    head = program // (BLOCKS * COLUMNS) % HEADS
    slot = (program // (BLOCKS * COLUMNS * HEADS)).to(tl.int64)
    start, tokens, place = chunk_bounds(slot, T, C, bounds, PACKED)
    return part, column, head, slot, start, tokens, place


@triton.jit
def start_of_keys(keys, start, slot, head, HEADS, C, K: tl.constexpr, P: tl.constexpr):
    """A chunk's first key in `[slots, HEADS, K, C]`, or at P = 1, where no channel is read alone, `[B T, HEADS, K]`."""
    return keys + (start * HEADS + head) * K if P == 1 else keys + (slot * HEADS + head) * K * C


@triton.jit
def load_keys(keys, at, tokens, HEADS, C, K: tl.constexpr, P: tl.constexpr, DTYPE: tl.constexpr):
    """Keys `[K, block]` of the tokens `at`, with `keys` from `start_of_keys`; anything beyond the chunk's end."""
    channel = tl.arange(0, K)
    if P == 1:
        rows = tl.load(keys + tl.minimum(at, tokens - 1)[:, None] * HEADS * K + channel[None, :])
        block = tl.trans(rows.to(DTYPE))
    else:
        block = tl.load(keys + channel[:, None] * C + at[None, :])
    return block
