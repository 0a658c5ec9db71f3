"""One decoded token: the recurrence, in place on the state."""

from functools import lru_cache

import torch
from torch import Tensor

from zoo.kernels.power.call import Step
from zoo.kernels.power.expansion import Level, coefficients, expand_by, levels
from zoo.kernels.power.heads import spread_heads
from zoo.kernels.power.offset import key_channels, query_channels
from zoo.kernels.power.reference import vanishes

__all__ = ["expansion_tables", "step_in_place"]


@lru_cache(maxsize=16)
def expansion_tables(K: int, p: int, dtype: torch.dtype, device: torch.device) -> tuple[tuple[Level, ...], Tensor]:
    """Index tables and coefficients, which stay on the device: a CUDA graph cannot copy them there.

    Only for real tensors outside a trace, which is where a step runs. A tensor of inference mode would be of no use to
    others.
    """
    with torch.inference_mode(False):
        return levels(K, p, device), coefficients(K, p, dtype, device)


def step_in_place(step: Step) -> Tensor:
    """`S <- g S + m(k) v^T`, `z <- g z + m(k)`: o `[B, Ho, V]`.

    What the past gives is read from the state, and the token's own weight is taken as it is defined. Read back through
    monomials of both signs it would have lost digits where they cancel, which nothing else hides from a token that is
    alone.
    """
    q, k, v, log_g, S, z, offset, p, scale, normalize = step
    heads, dtype = step.heads, S.dtype
    q, k = query_channels(q.to(dtype) * scale, offset), key_channels(k.to(dtype), offset)
    tables, c = expansion_tables(k.shape[-1], p, dtype, k.device)
    values = spread_heads(v.to(dtype), heads.state, 1)  # [B, Hs, V]
    if log_g is not None:
        gates = spread_heads(log_g.to(dtype).exp(), heads.state, 1)[..., None]  # [B, Hs, 1]
        S.mul_(gates[..., None])
        z.mul_(gates)
    queries = spread_heads(c * expand_by(q, tables), heads.output, 1).unflatten(1, (heads.state, -1))
    scores = (spread_heads(q, heads.output, 1) * spread_heads(k, heads.output, 1)).sum(-1)
    weights = (scores**p).unflatten(1, (heads.state, -1))[..., None]  # [B, Hs, R, 1]
    o = torch.einsum("bhrd,bhdv->bhrv", queries, S) + weights * values[:, :, None]
    if normalize:
        total = torch.einsum("bhrd,bhd->bhr", queries, z)[..., None] + weights
        o = torch.where(vanishes(total), 0, o / total)
    keys = spread_heads(expand_by(k, tables), heads.state, 1)  # [B, Hs, D]
    S.addcmul_(keys[..., None], values[..., None, :])
    z.add_(keys)
    return o.flatten(1, 2).to(v.dtype)
