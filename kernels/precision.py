"""The dtypes that ops compute in: of sums, and under autocast."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["accumulation_dtype", "autocast_dtype", "cast_for_autocast", "concatenate", "without_autocast"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums and states are float32, or float64 where the inputs are."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype of `x` under autocast: lowered where autocast is on, except float64, as in torch's own ops."""
    device = x.device.type
    lowers = device != "meta" and torch.is_autocast_enabled(device)  # there is no autocast for the meta device
    return torch.get_autocast_dtype(device) if lowers and x.dtype != torch.float64 else x.dtype


def cast_for_autocast(*tensors: Tensor) -> list[Tensor]:
    """`tensors` in the dtype that autocast asks for."""
    return [x.to(autocast_dtype(x)) for x in tensors]


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which products of tensors on the device of `x` keep their dtype."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def concatenate(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat` of tensors of one dtype, which they keep under autocast.

    torch's own looks for the widest of them there, and knows none but float32 and autocast's.
    """
    with without_autocast(tensors[0]):
        return torch.cat(list(tensors), dim)
