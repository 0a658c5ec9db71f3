"""The definition of RWKV-7's time mixing, written to be read: one token at a time.

Everything faster is tested against this. Plain differentiable PyTorch in any floating dtype. Shapes: r, log_w, k, v,
kappa and a `[B, T, H, N]`; S `[B, H, N, N]`, key channel first, or None for an empty state.

Source: Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv 2503.14456.
"""

import torch
from torch import Tensor

from zoo.kernels.precision import accumulation_dtype

__all__ = ["recurrent"]


def recurrent(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, S: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`S_t = diag(w_t) S_{t-1} - (kappa_t * a_t) (kappa_t^T S_{t-1}) + k_t v_t^T`, then `o_t = S_t^T r_t`.

    Returns o `[B, T, H, N]` in the dtype of v, and the state after the last token.
    """
    dtype = accumulation_dtype(r.dtype)
    B, T, H, N = r.shape
    S = r.new_zeros(B, H, N, N, dtype=dtype) if S is None else S.to(dtype)
    w = log_w.to(dtype).exp()
    reads, keys, values, removal, rates = (x.to(dtype) for x in (r, k, v, kappa, a))
    outputs = []
    for t in range(T):
        # What the state holds for kappa, read before it decays.
        held = torch.einsum("bhk,bhkv->bhv", removal[:, t], S)
        S = w[:, t, :, :, None] * S
        S = S - (removal[:, t] * rates[:, t])[..., None] * held[..., None, :]
        S = S + keys[:, t, :, :, None] * values[:, t, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", reads[:, t], S))
    o = torch.stack(outputs, dim=1) if outputs else r.new_zeros(B, 0, H, N, dtype=dtype)
    return o.to(v.dtype), S
