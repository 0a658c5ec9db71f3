"""Softmax attention over heads, in the zoo's layout."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["attention_flops", "softmax_attention"]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attend from q `[B, T, Hq, K]` to k, v `[B, L, Hk, K]`; `[B, T, Hq, K]`.

    Args:
        visible: `[B or 1, T, L]` bool, which keys a query sees; None: those up to its own place, with L = T.
    """
    o = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2).to(q.dtype),  # a cache may be kept in another dtype
        v.transpose(1, 2).to(q.dtype),
        attn_mask=None if visible is None else visible[:, None],
        is_causal=visible is None,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return o.transpose(1, 2)


def attention_flops(pairs: int, heads: int, head_width: int) -> int:
    """FLOPs for `pairs` of a query and a key that it sees: a score and a weighted value each."""
    return 4 * pairs * heads * head_width
