"""Normalisation layers."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.linear import own_part
from zoo.blocks.treatment import STEADY
from zoo.kernels.sequence import SequenceGroup, gather

__all__ = [
    "GroupedRMSNorm", "HeadLayerNorm", "HeadNorm", "JoinedRMSNorm", "LayerNorm", "NormName", "OffsetRMSNorm", "RMSNorm",
    "WholeNorm", "make_norm", "unit_length",
]  # fmt: skip

NormName = Literal["layernorm", "rmsnorm", "offset-rmsnorm"]


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose weight and bias may have fewer bits than its input, as under autocast to another dtype."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(dtype), bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last dimension, computed in the wider of the input's and the weight's dtype.

    torch's own stays in bfloat16 under autocast, unlike its LayerNorm. The output has the input's dtype.
    """

    eps: float

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        weight = own_part(self.weight)
        wide = x.to(torch.promote_types(x.dtype, weight.dtype))
        return self._scaled(wide, weight.to(wide.dtype)).to(x.dtype)

    def _scaled(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class JoinedRMSNorm(RMSNorm):
    """RMSNorm over the channels of all heads together, whose weights are those of each head one after the other."""

    group: SequenceGroup | None = None
    """The processes that have the heads, where there are several."""

    def _scaled(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.group is None:
            return super()._scaled(x, weight)
        return _over_processes(x, self.eps, self.group) * weight


class OffsetRMSNorm(RMSNorm):
    """RMSNorm whose weights are what the factors are beyond one, as in Gemma: 16 bits hold them better there.

    Computed in float32 at least; the output has the input's dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(torch.promote_types(x.dtype, self.weight.dtype), torch.float32))
        return F.rms_norm(wide, self.normalized_shape, 1 + self.weight.to(wide.dtype), self.eps).to(x.dtype)

    def reset_parameters(self) -> None:
        """Start with factors of one."""
        nn.init.zeros_(self.weight)


class HeadNorm(nn.Module):
    """RMSNorm over the width of every head of `[..., H, K]`, each with a weight of its own, as in RetNet.

    Computed in the wider of the input's and the weight's dtype, with an offset at least in float32; output in the
    input's.

    Args:
        offset: added to the weights: 1 where they are what factors are beyond one.
    """

    treatments: ClassVar = {"weight": STEADY}

    def __init__(self, heads: int, width: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((heads, width), 1 - offset))

    def forward(self, x: Tensor) -> Tensor:
        weight = own_part(self.weight)
        wide = torch.promote_types(x.dtype, weight.dtype)
        if self.offset:
            wide = torch.promote_types(wide, torch.float32)  # where the sum has the bits of both
        factor = weight.to(wide) + self.offset if self.offset else weight
        return (self._divided(x.to(wide)) * factor).to(x.dtype)

    def _divided(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)

    def initialize(self, std: float) -> None:
        """Start with factors of one, whatever `std` other weights have."""
        nn.init.constant_(self.weight, 1 - self.offset)


class WholeNorm(HeadNorm):
    """RMSNorm over all heads of `[..., H, K]` together, as in OLMo 2."""

    group: SequenceGroup | None = None
    """As of `JoinedRMSNorm`."""

    def _divided(self, x: Tensor) -> Tensor:
        if self.group is not None:
            return _over_processes(x.flatten(-2), self.eps, self.group).view_as(x)
        return F.rms_norm(x.flatten(-2), (x.shape[-2] * x.shape[-1],), eps=self.eps).view_as(x)


class HeadLayerNorm(nn.Module):
    """LayerNorm over the width of every head of `[..., H, N]`, each with a weight and a bias of its own, as in RWKV.

    Computed in the wider of the input's and the weight's dtype; output in the input's.
    """

    treatments: ClassVar = {"weight": STEADY}

    def __init__(self, heads: int, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = own_part(self.weight), own_part(self.bias)
        wide = x.to(torch.promote_types(x.dtype, weight.dtype))
        return (F.layer_norm(wide, x.shape[-1:], eps=self.eps) * weight + bias).to(x.dtype)

    def initialize(self, std: float) -> None:
        """Start at one and zero, whatever `std` other weights have."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)


class GroupedRMSNorm(nn.Module):
    """RMSNorm over each of some equal groups of channels of `[..., d]`, with one weight a channel, as in Mamba-2.

    Computed in the wider of the input's and the weight's dtype; output in the input's.
    """

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = own_part(self.weight)
        wide = x.to(torch.promote_types(x.dtype, weight.dtype)).unflatten(-1, (self.groups, -1))
        return (F.rms_norm(wide, wide.shape[-1:], eps=self.eps).flatten(-2) * weight).to(x.dtype)

    def initialize(self, std: float) -> None:
        """Start at one, whatever `std` other weights have."""
        nn.init.ones_(self.weight)


def _over_processes(x: Tensor, eps: float, group: SequenceGroup) -> Tensor:
    """Divide x `[..., d]`, the channels of this process, by the root of the mean square of all processes' channels.

    Computed in float32 at least, as torch's own is.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    square = gather(wide.square().mean(-1, keepdim=True), group).mean(0)
    return (wide * torch.rsqrt(square + eps)).to(x.dtype)


def unit_length(x: Tensor) -> Tensor:
    """Vectors `[..., K]` of length one, or less near zero; computed at least in float32, and returned as x is."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


def make_norm(name: NormName, width: int, eps: float, bias: bool) -> nn.Module:
    """Return the layer called `name`; only LayerNorm knows a bias."""
    if name == "layernorm":
        return LayerNorm(width, eps, bias=bias)
    return RMSNorm(width, eps) if name == "rmsnorm" else OffsetRMSNorm(width, eps)
