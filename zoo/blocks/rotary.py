"""Rotary position embedding (Su et al., arXiv 2104.09864): pairs of channels turn with the position."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RotaryTable", "rotary_table", "rotate"]


class RotaryTable(NamedTuple):
    """Cosines and sines of every token's angles, `[B or 1, T, 1, K/2]`."""

    cos: Tensor
    sin: Tensor


def rotary_table(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> RotaryTable:
    """Return the rotation of `positions [B or 1, T]` for heads of even `width`.

    Pair `i` turns by `base^(-2i/width)` a token. The angles are float32 at least, whatever `dtype` the heads have:
    bfloat16 cannot count past 256.
    """
    return RotaryTable(*_table(positions, width, base, torch.promote_types(dtype, torch.float32)))


# Opaque, because the compiler would compute powers, sines and cosines anew in each kernel that rotates, for each head
# of each layer: most of such a kernel's time. So they are computed once for all layers.
@torch.library.custom_op("zoo::rotary_table", mutates_args=())
def _table(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    pairs = torch.arange(width // 2, device=positions.device, dtype=dtype)
    angles = positions[..., None, None].to(dtype) * base ** (-2 * pairs / width)
    return angles.cos(), angles.sin()


@_table.register_fake
def _(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (*positions.shape, 1, width // 2)
    return positions.new_empty(shape, dtype=dtype), positions.new_empty(shape, dtype=dtype)


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate heads `x [B, T, H, K]`; channel `i` pairs with channel `i + K/2`, as in Llama. Same dtype as `x`."""
    cos, sin = table
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
