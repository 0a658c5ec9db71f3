"""Rotary position embedding (Su et al., arXiv 2104.09864): pairs of channels turn with the position."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.precision import concatenate

__all__ = ["RotaryTable", "fused_rotary_table", "rotary_table", "rotate"]


class RotaryTable(NamedTuple):
    """Cosines of every token's angles, and sines with the sign with which the other channel enters.

    Both are `[B or 1, T, 1, K]`.
    """

    cos: Tensor
    sin: Tensor


def rotary_table(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> RotaryTable:
    """Return the rotation of `positions [B or 1, T]` for heads of even `width`.

    Pair `i` turns by `base^(-2i/width)` a token. The table is right to float32 at least, at any position and whatever
    `dtype` the heads have: bfloat16 cannot count past 256.
    """
    return RotaryTable(*_table(positions, width, base, torch.promote_types(dtype, torch.float32)))


def fused_rotary_table(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> RotaryTable:
    """The same for one token a row, `positions [B, 1]`: the compiler makes these few angles where it rotates."""
    return RotaryTable(*_angles(positions, width, base, torch.promote_types(dtype, torch.float32)))


def _angles(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    # In float64 up to the last turn: in float32 a frequency and an angle at position 131,072 err by 1/100 each.
    pairs = torch.arange(width // 2, device=positions.device, dtype=torch.float64)
    turns = positions[..., None, None].double() * (base ** (-2 * pairs / width) / (2 * math.pi))
    angles = (2 * math.pi * (turns - turns.round())).to(dtype)
    cos, sin = angles.cos(), angles.sin()
    return concatenate((cos, cos), -1), concatenate((-sin, sin), -1)


# Opaque, because the compiler would compute powers, sines and cosines anew in each kernel that rotates, for each head
# of each layer: most of such a kernel's time. So they are computed once for all layers.
@torch.library.custom_op("zoo::rotary_table", mutates_args=())
def _table(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _angles(positions, width, base, dtype)


@_table.register_fake
def _(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (*positions.shape, 1, width)
    return positions.new_empty(shape, dtype=dtype), positions.new_empty(shape, dtype=dtype)


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate heads `x [B, T, H, K]`; channel `i` pairs with channel `i + K/2`, as in Llama. Same dtype as `x`."""
    wide = x.to(table.cos.dtype)
    # A flip, not a concatenation of two halves: the compiler would compute both for every channel and choose.
    other = wide.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return (wide * table.cos + other * table.sin).to(x.dtype)
