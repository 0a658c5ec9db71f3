"""The function: what is asked of intervals, and which form computes it."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.kernels.interval_attention.blocks import attend_in_blocks
from zoo.kernels.interval_attention.mask import attend_by_mask
from zoo.kernels.precision import cast_for_autocast, without_autocast
from zoo.kernels.transforms import transformed

__all__ = ["interval_attention"]


def interval_attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Softmax attention from each query to the keys `first` to `last`; o `[B, T, Hq, K]` in the dtype of q.

    What a mask `[T, L]` would say in memory quadratic in the length, two numbers a query say: a document in a packed
    row begins at `first`, a causal query's own key is `last`. On a CPU blocks of queries meet the keys that they can
    reach: pairs outside of all intervals cost next to nothing, memory is linear in T and L, and no layout of documents
    compiles anew. A GPU still takes the mask.

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
        in_blocks = q.device.type == "cpu" and not transformed()
        if in_blocks:
            return attend_in_blocks(q, k, v, first, last)
        # torch's faster kernels know no forward mode.
        with sdpa_kernel(SDPBackend.MATH) if transformed() else nullcontext():
            return attend_by_mask(q, k, v, first, last)
