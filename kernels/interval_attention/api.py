"""The function: what is asked of intervals, and which form computes it."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.kernels.interval_attention.blocks import attend_in_blocks
from zoo.kernels.interval_attention.flex import flex_interval_attention, supports_flex
from zoo.kernels.interval_attention.mask import attend_by_mask
from zoo.kernels.precision import cast_for_autocast, without_autocast
from zoo.kernels.transforms import transformed

__all__ = ["interval_attention"]


def interval_attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Softmax attention from each query to the keys `first` to `last`; o `[B, T, Hq, K]` in the dtype of q.

    What a mask `[T, L]` would say in memory quadratic in the length, two numbers a query say: a document in a packed
    row begins at `first`, a causal query's own key is `last`, a window narrows `first`. Blocks of queries meet the keys
    that they can reach: pairs outside of all intervals cost next to nothing, memory is linear in T and L, and no layout
    of documents compiles anew.

    On a GPU this is FlexAttention, whose block mask is made from the intervals; a GPU's float64, heads narrower than 16
    and calls under `torch.func` take a mask.

    Args:
        q: `[B, T, Hq, K]`.
        k: `[B, L, Hk, K]`, with Hk dividing Hq: consecutive queries share a key. Of any floating dtype, as v.
        v: `[B, L, Hk, K]`.
        first: `[B or 1, T]` int64, 0 <= first <= last: the first key that each query sees; never falls along T.
        last: `[B or 1, T]` int64, last < L: the last one; never falls along T.
    """
    q, k, v = cast_for_autocast(q, k.to(q.dtype), v.to(q.dtype))
    first, last = torch.broadcast_tensors(first, last)
    with without_autocast(q):
        if transformed():
            with sdpa_kernel(SDPBackend.MATH):  # torch's faster kernels know no forward mode
                return attend_by_mask(q, k, v, first, last)
        if q.device.type == "cpu":
            return attend_in_blocks(q, k, v, first, last)
        return (flex_interval_attention if supports_flex(q) else attend_by_mask)(q, k, v, first, last)
