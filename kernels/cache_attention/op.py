"""Attention of one token to a cache, as a torch.library op that the compiler leaves alone."""

import torch
from torch import Tensor

from zoo.kernels.transforms import transformed
from zoo.kernels.triton_support import DTYPES, INTERPRETED, TRITON

if TRITON:
    from zoo.kernels.cache_attention.split import attend_in_splits
from zoo.kernels.cache_key import key_compiled_code_by_sources

__all__ = ["cache_attention", "supports_cache_attention"]

key_compiled_code_by_sources()

_WIDTHS = (16, 32, 64, 128, 256)


def supports_cache_attention(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the kernel takes these: on a GPU with Triton, no float64, heads of a power of two, no derivatives."""
    return (
        TRITON
        and not transformed()
        and (q.is_cuda or INTERPRETED)
        and all(x.dtype in DTYPES for x in (q, keys, values))
        and q.shape[-1] in _WIDTHS
    )


@torch.library.custom_op("zoo::cache_attention", mutates_args=())
def cache_attention(q: Tensor, keys: Tensor, values: Tensor, position: Tensor, start: Tensor) -> Tensor:
    """Softmax attention from one token a row to a ring of slots; o `[B, Hq, K]` in the dtype of q.

    What a general attention kernel leaves on the table for one query: it is cut along the tokens, so that a few heads
    keep a whole GPU reading; it stops at the last token, wherever that is by now; and grouped queries share what is
    read. Scores and sums are float32.

    Args:
        q: `[B, Hq, K]`.
        keys: `[B, L, Hk, K]`, contiguous, with Hk dividing Hq; the token at position t stands in slot `t mod L`.
        values: as `keys`.
        position: `[B]` int64, the tokens in the cache so far, this one included; at least 1.
        start: `[B]` int64: tokens before this position are not seen.
    """
    return attend_in_splits(q, keys, values, position, start)


@cache_attention.register_fake
def _(q: Tensor, keys: Tensor, values: Tensor, position: Tensor, start: Tensor) -> Tensor:
    return q.new_empty(q.shape)
