"""What a program of a kernel works on."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds

__all__ = ["locate"]


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
