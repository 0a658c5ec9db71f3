"""Where chunks are: the same for a batch of sequences and for packed ones; see `plan.Plan`."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["chunk_bounds", "pack_chunks"]


def pack_chunks(cu_seqlens: Tensor, C: int, slots: int) -> tuple[Tensor, Tensor]:
    """Packed chunks' bounds, int32 `[slots, 4]`, and sequences' slots, int32 `[sequences + 1]`.

    Bounds are a chunk's first token, its last token + 1, how many chunks precede it in its sequence, and that.
    """
    sequences = cu_seqlens.shape[0] - 1
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    sequence_slots = F.pad((ends - starts + C - 1).div(C, rounding_mode="floor").cumsum(0), (1, 0))
    slot = torch.arange(slots, device=cu_seqlens.device)
    sequence = torch.searchsorted(sequence_slots[1:], slot, right=True)
    exists = sequence < sequences
    sequence = sequence.clamp(max=sequences - 1)
    place = slot - sequence_slots[sequence]
    start = starts[sequence] + place * C
    stop = torch.minimum(start + C, ends[sequence])
    bounds = torch.stack((start, stop, place, sequence), 1) * exists[:, None]
    return bounds.int(), sequence_slots.int()


@triton.jit
def chunk_bounds(slot, T, C, bounds, PACKED: tl.constexpr):
    """The first token of a chunk as a row of `[B T]`, its number of tokens, and how many chunks precede it."""
    if PACKED:
        start = tl.load(bounds + slot * 4)
        tokens = tl.load(bounds + slot * 4 + 1) - start
        place = tl.load(bounds + slot * 4 + 2)
        return start.to(tl.int64), tokens, place
    chunks = tl.cdiv(T, C)
    place = (slot % chunks).to(tl.int32)
    return (slot // chunks).to(tl.int64) * T + place * C, tl.minimum(C, T - place * C), place
