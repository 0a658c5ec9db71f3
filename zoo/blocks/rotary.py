"""Rotary position embedding (Su et al., arXiv 2104.09864): pairs of channels turn with the position."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.blocks.rotary_scaling import LongropeScaling, ScalingConfig, parse_scaling
from zoo.errors import ConfigError
from zoo.kernels.precision import concatenate

__all__ = ["RotaryTable", "Rotation", "rotate", "turning_width"]


class RotaryTable(NamedTuple):
    """Cosines of every token's angles, and sines with the sign with which the other channel enters.

    Both are `[B or 1, T, 1, K]`.
    """

    cos: Tensor
    sin: Tensor


class Rotation:
    """How heads turn: pair `i` of `width` channels by `base^(-2i/width)` a token, or as `scaling` says.

    Args:
        width: of a head, or of the first channels of it that turn, even.
        base: more than 1.
        scaling: what was done for a longer context, if anything; its amplitude is in the tables too.

    Raises:
        ConfigError: the width is odd, or the scaling is not for so many pairs.
    """

    def __init__(self, width: int, base: float, scaling: ScalingConfig | None = None) -> None:
        if width % 2:
            raise ConfigError(f"head_width: rotary embedding needs an even width, got {width}")
        if scaling is not None:
            scaling.check(width // 2)
        self.width, self.base, self.scaling = width, base, scaling
        self._text = "" if scaling is None else scaling.model_dump_json()

    def table(self, positions: Tensor, dtype: torch.dtype) -> RotaryTable:
        """Return the rotation of `positions [B or 1, T]`.

        It is right to float32 at least, at any position and whatever `dtype` the heads have: bfloat16 cannot count past
        256.
        """
        wide = torch.promote_types(dtype, torch.float32)
        return RotaryTable(*_table(positions, self.width, self.base, self._text, wide))

    def fused_table(self, positions: Tensor, dtype: torch.dtype) -> RotaryTable:
        """The same for one token a row, `positions [B, 1]`: the compiler makes these few angles where it rotates."""
        if isinstance(self.scaling, LongropeScaling):  # a list of numbers, for which a compiled kernel has no place
            return self.table(positions, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        return RotaryTable(*_angles(positions, self.width, self.base, self.scaling, wide))


def _angles(
    positions: Tensor, width: int, base: float, scaling: ScalingConfig | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    # In float64 up to the last turn: in float32 a frequency and an angle at position 131,072 err by 1/100 each.
    pairs = torch.arange(width // 2, device=positions.device, dtype=torch.float64)
    frequencies = base ** (-2 * pairs / width) if scaling is None else scaling.frequencies(pairs, base)
    turns = positions[..., None, None].double() * (frequencies / (2 * math.pi))
    angles = (2 * math.pi * (turns - turns.round())).to(dtype)
    cos, sin = angles.cos(), angles.sin()
    if scaling is not None and scaling.amplitude != 1:
        cos, sin = cos * scaling.amplitude, sin * scaling.amplitude
    return concatenate((cos, cos), -1), concatenate((-sin, sin), -1)


# Opaque, because the compiler would compute powers, sines and cosines anew in each kernel that rotates, for each head
# of each layer: most of such a kernel's time. So they are computed once for all layers.
@torch.library.custom_op("zoo::rotary_table", mutates_args=())
def _table(positions: Tensor, width: int, base: float, scaling: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _angles(positions, width, base, parse_scaling(scaling), dtype)


@_table.register_fake
def _(positions: Tensor, width: int, base: float, scaling: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (*positions.shape, 1, width)
    return positions.new_empty(shape, dtype=dtype), positions.new_empty(shape, dtype=dtype)


def turning_width(width: int, share: float) -> int:
    """Return how many channels of a head turn, an even number, where `share` of them do."""
    return width if share == 1 else 2 * -(-int(width * share) // 2)


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate heads `x [B, T, H, K]`, or as many of the first channels as the table has. Same dtype as `x`.

    Of `K` channels that turn, channel `i` pairs with channel `i + K/2`, as in Llama.
    """
    turning = table.cos.shape[-1]
    if turning < x.shape[-1]:
        return concatenate((rotate(x[..., :turning], table), x[..., turning:]), -1)
    wide = x.to(table.cos.dtype)
    # A flip, not a concatenation of two halves: the compiler would compute both for every channel and choose.
    other = wide.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return (wide * table.cos + other * table.sin).to(x.dtype)
