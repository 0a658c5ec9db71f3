"""One decoded token: the recurrence, in place on the state."""

import torch
from torch import Tensor

from zoo.kernels.power.expansion import coefficients, expand
from zoo.kernels.power.heads import Heads, spread_heads
from zoo.kernels.power.reference import vanishes

__all__ = ["step_in_place"]


def step_in_place(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor, z: Tensor, *,
    p: int, scale: float, normalize: bool,
) -> Tensor:  # fmt: skip
    """`S <- g S + m(k) v^T`, `z <- g z + m(k)`, then read. Shapes: q `[B, Hq, K]`, v `[B, Hv, V]`; o `[B, Ho, V]`."""
    heads, dtype = Heads(q.shape[1], k.shape[1], v.shape[1]), S.dtype
    keys = spread_heads(expand(k.to(dtype), p), heads.state, 1)  # [B, Hs, D]
    values = spread_heads(v.to(dtype), heads.state, 1)  # [B, Hs, V]
    if log_g is not None:
        gates = spread_heads(log_g.to(dtype).exp(), heads.state, 1)[..., None]  # [B, Hs, 1]
        S.mul_(gates[..., None])
        z.mul_(gates)
    S.addcmul_(keys[..., None], values[..., None, :])
    z.add_(keys)
    c = coefficients(q.shape[-1], p, dtype, q.device)
    queries = spread_heads(c * expand(q.to(dtype) * scale, p), heads.output, 1).unflatten(1, (heads.state, -1))
    o = torch.einsum("bhrd,bhdv->bhrv", queries, S)
    if normalize:
        total = torch.einsum("bhrd,bhd->bhr", queries, z)[..., None]
        o = torch.where(vanishes(total), 0, o / total)
    return o.flatten(1, 2).to(v.dtype)
