"""Softmax attention over heads by PyTorch's own function, in the zoo's layout."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend_where", "attention_flops", "causal_attention"]


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from q `[B, T, Hq, K]` to k, v `[B, T, Hk, K]` up to each query's own place; `[B, T, Hq, K]`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def attend_where(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Attend from q `[B, T, Hq, K]` to the keys among k, v `[B, L, Hk, K]` that are visible `[B, T, L]`.

    For few queries: the mask takes as much memory as there are pairs. Keys and values may be of another dtype.
    """
    q, k, v = (x.to(q.dtype).transpose(1, 2) for x in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None], enable_gqa=q.shape[1] != k.shape[1])
    return attended.transpose(1, 2)


def attention_flops(pairs: int, heads: int, head_width: int) -> int:
    """FLOPs for `pairs` of a query and a key that it sees: a score and a weighted value each."""
    return 4 * pairs * heads * head_width
