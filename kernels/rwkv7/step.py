"""One decoded token: the recurrence, in place on the state."""

import torch
from torch import Tensor

__all__ = ["step_in_place"]


def step_in_place(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, S: Tensor) -> Tensor:
    """`S <- diag(w) S - (kappa * a) (kappa^T S) + k v^T`, then `S^T r`. Tokens `[B, H, N]`, S `[B, H, N, N]`."""
    reads, keys, values, removal, rates = (x.to(S.dtype) for x in (r, k, v, kappa, a))
    held = torch.einsum("bhk,bhkv->bhv", removal, S)
    S.mul_(log_w.to(S.dtype).exp()[..., None])
    S.addcmul_((removal * rates)[..., None], held[..., None, :], value=-1)
    S.addcmul_(keys[..., None], values[..., None, :])
    return torch.einsum("bhk,bhkv->bhv", reads, S).to(v.dtype)
