"""Softmax attention over heads by PyTorch's own function, in the zoo's layout."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend_where", "attention_flops", "causal_attention"]


_SINK_CHANNELS = 8


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from q `[B, T, Hq, K]` to k, v `[B, T, Hk, K]` up to each query's own place; `[B, T, Hq, K]`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def attend_where(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, sink: Tensor | None = None, cap: float | None = None
) -> Tensor:
    """Attend from q `[B, T, Hq, K]` to the keys among k, v `[B, L, Hk, K]` that are visible `[B, T, L]`.

    For few queries: the mask takes as much memory as there are pairs. Keys and values may be of another dtype.

    Args:
        sink: `[Hq]`, the score of one more key a head, whose value is zero; None: there is none.
        cap: what scores stay below, and so would a sink's; None: nothing. PyTorch's function knows none, so that scores
            of all pairs are held in memory.
    """
    if cap is not None:
        return _attend_capped(q, k, v, visible, cap)
    k, v, width = k.to(q.dtype), v.to(q.dtype), q.shape[-1]
    if sink is not None:
        q, k, v, visible = _with_sink(q, k, v, visible, sink)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attended = F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible[:, None], scale=width**-0.5, enable_gqa=q.shape[1] != k.shape[1]
    )
    return attended.transpose(1, 2)[..., :width]


def _attend_capped(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, cap: float) -> Tensor:
    """`softmax(cap tanh(q . k / (cap sqrt(K)))) v`, computed in float32 at least, as in Gemma 2 (arXiv 2408.00118)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    grouped = q.unflatten(2, (k.shape[2], -1))
    scores = torch.einsum("bthgk,blhk->bhgtl", grouped, k.to(q.dtype)).to(dtype) * q.shape[-1] ** -0.5
    scores = (cap * torch.tanh(scores / cap)).masked_fill(~visible[:, None, None], torch.finfo(dtype).min)
    # Not by -inf, for which a query that sees nothing, in padding, would have a gradient that is no number.
    return torch.einsum("bhgtl,blhk->bthgk", scores.softmax(-1).to(q.dtype), v.to(q.dtype)).flatten(2, 3)


def _with_sink(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, sink: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put a visible key before the others that gives every query its head's sink as score.

    It differs from them in a channel of its own, in which queries have the sink: so query heads that share a key may
    have different scores, and any kernel does. Channels stay a multiple of 8, as kernels want them.
    """
    more = _SINK_CHANNELS
    score = (sink * q.shape[-1] ** 0.5).to(q.dtype)[:, None].expand(*q.shape[:-1], 1)
    q = F.pad(torch.cat((q, score), -1), (0, more - 1))
    one = (torch.arange(k.shape[-1] + more, device=k.device) == k.shape[-1]).to(k.dtype)
    k = torch.cat((one.expand(k.shape[0], 1, k.shape[2], -1), F.pad(k, (0, more))), 1)
    return q, k, F.pad(v, (0, more, 0, 0, 1, 0)), F.pad(visible, (1, 0), value=True)


def attention_flops(pairs: int, heads: int, head_width: int) -> int:
    """FLOPs for `pairs` of a query and a key that it sees: a score and a weighted value each."""
    return 4 * pairs * heads * head_width
