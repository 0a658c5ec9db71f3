"""One decoded token: the recurrence, in place on the state."""

import torch
from torch import Tensor

from zoo.kernels.delta.call import Step
from zoo.kernels.power.expansion import expand_by
from zoo.kernels.power.heads import spread_heads
from zoo.kernels.power.step import expansion_tables

__all__ = ["step_in_place"]


def step_in_place(call: Step) -> Tensor:
    """`S <- g S + m(k) u^T`, then read: o `[B, Hv, V]` in the dtype of v."""
    q, k, v, log_g, beta, S, p, scale = call
    H, dtype = v.shape[1], S.dtype
    tables, c = expansion_tables(k.shape[-1], p, dtype, k.device)
    keys = spread_heads(expand_by(k.to(dtype), tables), H, 1)  # [B, Hv, D]
    queries = spread_heads(c * expand_by(q.to(dtype) * scale, tables), H, 1)  # [B, Hv, D]
    if log_g is not None:
        gates = log_g.to(dtype).exp()
        S.mul_(gates[..., None] if gates.dim() == 3 else gates[..., None, None])
    written = v.to(dtype)
    if beta is not None:
        written = beta.to(dtype)[..., None] * (written - torch.einsum("bhd,bhdv->bhv", c * keys, S))
    S.addcmul_(keys[..., None], written[..., None, :])
    return torch.einsum("bhd,bhdv->bhv", queries, S).to(v.dtype)
