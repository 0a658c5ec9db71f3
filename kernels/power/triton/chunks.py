"""How tokens are cut into chunks: the same for a batch of sequences and for packed ones.

A chunk has a slot, and no chunk spans two sequences. In a batch slot `b N + n` is chunk n of row b. Packed sequences
take `ceil(T / C) + n` slots, a bound that needs no word from the device; those left over hold no tokens.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.power.triton.configs import Config

__all__ = ["Chunks", "chunk_bounds", "count_slots", "cut"]


class Chunks(NamedTuple):
    """The chunks of one call."""

    size: int  # C
    slots: int
    batch: int  # B
    tokens: int  # T
    sequences: int  # rows of the state
    bounds: Tensor | None  # packed: int32 [slots, 4], first token, last token + 1, chunks before it, its sequence
    sequence_slots: Tensor | None  # packed: int32 [sequences + 1]

    @property
    def single(self) -> bool:
        """Whether no sequence has more than one chunk."""
        return self.bounds is None and self.slots == self.batch


def chunk_size(tokens: int, config: Config, wanted: int, packed: bool) -> int:
    """Tokens a chunk: as wanted, or, for 0, as configured; a short sequence is one chunk. In whole blocks of tokens."""
    block = max(size for launch in config.launches for size in (launch.block, launch.other))
    if wanted == 0 and not packed and tokens <= config.alone:
        wanted = tokens
    return -(-(wanted or config.chunk) // block) * block


def count_slots(x: Tensor, config: Config, wanted: int, cu_seqlens: Tensor | None) -> int:
    """Chunks of x `[B, T, ...]`; for packed sequences the bound that needs no word from the device."""
    batch, tokens = x.shape[:2]
    if cu_seqlens is not None:
        return -(-tokens // chunk_size(tokens, config, wanted, packed=True)) + cu_seqlens.shape[0] - 1
    if wanted == 0 and tokens <= config.alone:
        return batch
    return batch * -(-tokens // chunk_size(tokens, config, wanted, packed=False))


def cut(x: Tensor, config: Config, wanted: int, cu_seqlens: Tensor | None) -> Chunks:
    """Cut the sequences x `[B, T, ...]`, or packed ones, into chunks."""
    batch, tokens = x.shape[:2]
    size, slots = chunk_size(tokens, config, wanted, cu_seqlens is not None), count_slots(x, config, wanted, cu_seqlens)
    if cu_seqlens is None:
        return Chunks(size, slots, batch, tokens, batch, None, None)
    sequences = cu_seqlens.shape[0] - 1
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    sequence_slots = F.pad((ends - starts + size - 1).div(size, rounding_mode="floor").cumsum(0), (1, 0))
    slot = torch.arange(slots, device=cu_seqlens.device)
    sequence = torch.searchsorted(sequence_slots[1:], slot, right=True)
    exists = sequence < sequences
    sequence = sequence.clamp(max=sequences - 1)
    place = slot - sequence_slots[sequence]
    start = starts[sequence] + place * size
    stop = torch.minimum(start + size, ends[sequence])
    bounds = torch.stack((start, stop, place, sequence), 1) * exists[:, None]
    return Chunks(size, slots, batch, tokens, sequences, bounds.int(), sequence_slots.int())


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
