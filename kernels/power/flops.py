"""Floating-point operations of power attention, counted from the contractions that define it.

A multiply-add counts as two. States count at their packed size D, with the normaliser as one more value channel, and
weights inside a chunk at their causal mean of `(C + 1) / 2` keys a query: what the mathematics needs, whatever layout
an implementation works in. Expansions, gates, the offset's addition and the normaliser's division are pointwise and
left out, as is usual.
"""

from zoo.kernels.contractions import contraction_flops
from zoo.kernels.power.chunked import resolve_chunk_size
from zoo.kernels.power.expansion import state_size
from zoo.kernels.power.heads import Heads

__all__ = ["backward_flops", "forward_flops", "half_flops", "step_flops"]


def _token_flops(heads: Heads, K: int, V: int, p: int, *, offset: bool) -> tuple[int, int]:
    """For one token: reading and updating the state; meeting one key and its value."""
    D, Ho, Hs = state_size(K, p, offset=offset), heads.output, heads.state
    read = contraction_flops("hd,hdv->hv", (Ho, D), (Ho, D, V + 1))
    # The token is summed over, which makes the outer product a contraction too; shape 2 counts its addition.
    update = contraction_flops("thd,thv->hdv", (2, Hs, D), (2, Hs, V + 1)) // 2
    pair = (
        contraction_flops("hk,hk->h", (Ho, K), (Ho, K)) + contraction_flops("thj,jhv->thv", (1, Ho, 2), (2, Ho, V)) // 2
    )
    return read + update, pair


def forward_flops(
    B: int, T: int, heads: Heads, K: int, V: int, p: int, chunk_size: int = 0, *,
    with_state: bool = False, offset: bool = False,
) -> int:  # fmt: skip
    """Forward FLOPs for B sequences of T tokens; a single chunk without a state to read or return needs none."""
    chunk_size = resolve_chunk_size(chunk_size, T, K, p)
    state, pair = _token_flops(heads, K, V, p, offset=offset)
    needs_state = with_state or chunk_size < T
    keys = (min(chunk_size, T) + 1) / 2
    return round(B * T * ((state if needs_state else 0) + pair * keys))


def backward_flops(
    B: int, T: int, heads: Heads, K: int, V: int, p: int, chunk_size: int = 0, *,
    with_state: bool = False, offset: bool = False,
) -> int:  # fmt: skip
    """Backward FLOPs: two products for every one of the forward pass (recomputation is not counted)."""
    return 2 * forward_flops(B, T, heads, K, V, p, chunk_size, with_state=with_state, offset=offset)


def half_flops(
    B: int, T: int, heads: Heads, K: int, V: int, p: int, chunk_size: int = 0, *, offset: bool = False
) -> tuple[int, int]:
    """Forward FLOPs of what tokens add to a state, and of all else, where there is a state to read and to return."""
    whole = forward_flops(B, T, heads, K, V, p, chunk_size, with_state=True, offset=offset)
    D = state_size(K, p, offset=offset)
    sums = B * T * contraction_flops("thd,thv->hdv", (2, heads.state, D), (2, heads.state, V + 1)) // 2
    return sums, whole - sums


def step_flops(B: int, heads: Heads, K: int, V: int, p: int, *, offset: bool = False, pairs: int = 1) -> int:
    """FLOPs of one decoded token for B sequences, which meets so many keys, its own among them, beside the state."""
    state, pair = _token_flops(heads, K, V, p, offset=offset)
    return B * (state + pairs * pair)
