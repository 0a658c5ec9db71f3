"""What a call takes and gives."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Gradients", "Inputs"]


class Inputs(NamedTuple):
    """x `[B, T, C]`, weight `[C, W]`, bias `[C]`, tail `[B, W - 1, C]`, resets bool `[B, T]`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    tail: Tensor | None
    resets: Tensor | None


class Gradients(NamedTuple):
    """Of the first four inputs, empty for those that are absent."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    tail: Tensor
