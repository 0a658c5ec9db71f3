"""The state of power attention, in the packed layout that every implementation reads and writes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.devices import usable_device
from zoo.kernels.errors import InputError
from zoo.kernels.power.expansion import state_size
from zoo.kernels.state_limit import largest_state

__all__ = ["PowerState", "check_state_size", "init_power_state"]


class PowerState(NamedTuple):
    """All that power attention keeps of the past: sums over past tokens `j`, decayed by the gates since.

    `S [B, Hs, D, V]` sums `m(k_j) v_j^T` and `z [B, Hs, D]` sums `m(k_j)`; float32 (float64 for float64 inputs). Row
    order is that of `zoo.kernels.power.expansion`. Neither depends on the query, its scale or the normalisation. Where
    weights have an offset, keys have one more channel, the last one, which is 1: so D is C(K + p, p), and monomials of
    lower degree are among the rows. The offset itself belongs to the query.
    """

    S: Tensor
    z: Tensor


def check_state_size(K: int, V: int, p: int, *, offset: bool = False) -> None:
    """Refuse widths whose state exceeds the limit, before anything is allocated.

    Raises:
        InputError: names the size that the state would have, and the largest key width that fits.
    """
    size, limit = state_size(K, p, offset=offset) * (V + 1) * 4, largest_state()
    if size <= limit:
        return
    fits = K
    while fits > 1 and state_size(fits, p, offset=offset) * (V + 1) * 4 > limit:
        fits -= 1
    raise InputError(
        f"p: a state of p={p} with key width K={K}{', an offset' if offset else ''} and value width V={V} takes "
        f"{size / 2**20:,.0f} MiB a head, over "
        f"the limit of {limit / 2**20:,.0f} MiB; the widest key that fits is K={fits}, or raise the "
        f"limit with zoo.state_limit({2 ** math.ceil(math.log2(size))})"
    )


def init_power_state(
    batch_size: int,
    heads: int,
    K: int,
    V: int,
    p: int,
    *,
    offset: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> PowerState:
    """An empty state: `S [batch_size, heads, D, V]` and `z [batch_size, heads, D]`, zeros.

    offset: for weights with an offset, whatever it is, whose state has more rows.

    Raises:
        InputError: when the state of one head would be over the limit (see `zoo.state_limit`).
    """
    check_state_size(K, V, p, offset=offset)
    D, device = state_size(K, p, offset=offset), usable_device(device)
    return PowerState(
        S=torch.zeros(batch_size, heads, D, V, device=device, dtype=dtype),
        z=torch.zeros(batch_size, heads, D, device=device, dtype=dtype),
    )
