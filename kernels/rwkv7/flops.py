"""Floating-point operations of RWKV-7's time mixing, counted from the contractions of the chunked form.

A multiply-add counts as two. Pairs of tokens in a chunk of C count at their causal mean: `(C - 1) / 2` earlier tokens
for what is removed, `(C + 1) / 2` for the output, which sees its own token too. Decays are pointwise and left out.
"""

from zoo.kernels.contractions import contraction_flops
from zoo.kernels.rwkv7.chunked import resolve_chunk_size

__all__ = ["backward_flops", "rwkv7_flops", "step_flops"]


def rwkv7_flops(batch: int, tokens: int, heads: int, width: int, chunk_size: int | None = None) -> int:
    """Forward FLOPs of `rwkv7` for `batch` sequences of `tokens` tokens; `chunk_size` as there."""
    C = resolve_chunk_size(chunk_size or 0, tokens)
    score = contraction_flops("n,n->", (width,), (width,))
    # Summed over tokens; shapes of 2 count the additions.
    value = contraction_flops("j,jv->v", (2,), (2, width)) // 2
    # Removal: scores of kappa with both kinds of writes; k's values; the triangular solve, for state and for values.
    earlier = (2 * score + value + 2 * value) * (C - 1) / 2
    # Output: scores of r with both kinds of writes, and the sums of what they wrote.
    seen = (2 * score + 2 * value) * (C + 1) / 2
    return round(batch * tokens * heads * (_state_flops(width) + earlier + seen))


def backward_flops(batch: int, tokens: int, heads: int, width: int, chunk_size: int | None = None) -> int:
    """Backward FLOPs: two products for every one of the forward pass (recomputation is not counted)."""
    return 2 * rwkv7_flops(batch, tokens, heads, width, chunk_size)


def step_flops(batch: int, heads: int, width: int) -> int:
    """FLOPs of one decoded token for `batch` sequences: two reads of the state and two updates."""
    return batch * heads * _state_flops(width)


def _state_flops(width: int) -> int:
    """Of one token: two reads of the state (what is removed, the output) and two updates (removal, addition)."""
    read = contraction_flops("n,nv->v", (width,), (width, width))
    update = contraction_flops("tn,tv->nv", (2, width), (2, width)) // 2
    return 2 * read + 2 * update
