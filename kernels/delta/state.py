"""The state of the delta rule: one matrix a value head, in the packed layout of power attention."""

import torch
from torch import Tensor

from zoo.kernels.devices import usable_device
from zoo.kernels.power.expansion import state_size
from zoo.kernels.power.state import check_state_size

__all__ = ["init_delta_state"]


def init_delta_state(
    batch_size: int,
    heads: int,
    K: int,
    V: int,
    p: int = 1,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """An empty state: zeros `[batch_size, heads, D, V]`, `D = C(K + p - 1, p)`; float32, float64 for float64 inputs.

    Raises:
        InputError: when the state of one head would be over the limit (see `zoo.state_limit`).
    """
    check_state_size(K, V, p)
    return torch.zeros(batch_size, heads, state_size(K, p), V, device=usable_device(device), dtype=dtype)
