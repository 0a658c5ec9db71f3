"""All pairs of queries and keys, with a mask: the form that torch differentiates any way."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend_by_mask"]


def attend_by_mask(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """`interval_attention` anywhere, in memory quadratic in the length."""
    key = torch.arange(k.shape[1], device=k.device)
    visible = (key >= first[..., None]) & (key <= last[..., None])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None], enable_gqa=q.shape[1] != k.shape[1])
    return o.transpose(1, 2)
