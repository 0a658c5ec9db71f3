"""The state of RWKV-7's time mixing: one matrix a head, key channel first, value channel second."""

import torch
from torch import Tensor

from zoo.kernels.devices import usable_device

__all__ = ["init_rwkv7_state"]


def init_rwkv7_state(
    batch: int,
    heads: int,
    width: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """An empty state: zeros `[batch, heads, width, width]`; float32, and float64 for float64 inputs."""
    return torch.zeros(batch, heads, width, width, device=usable_device(device), dtype=dtype)
