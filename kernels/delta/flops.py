"""Floating-point operations of the delta rule, counted from the contractions of the chunked form.

A multiply-add counts as two. States count at their packed size D, and pairs of tokens in a chunk of C at their causal
mean: `(C + 1) / 2` for the output, which sees its own token, and `(C - 1) / 2` for what is corrected. Expansions, gates
and rates are pointwise and left out, as is usual.
"""

from zoo.kernels.contractions import contraction_flops
from zoo.kernels.delta.chunked import resolve_chunk_size
from zoo.kernels.power.expansion import state_size

__all__ = ["backward_flops", "delta_flops", "step_flops"]


def _state_flops(K: int, V: int, p: int, *, corrects: bool) -> int:
    """Of one token and head: reading the state with the query, and with the key if that corrects; updating it."""
    D = state_size(K, p)
    read = contraction_flops("d,dv->v", (D,), (D, V))
    # Summed over tokens, which makes the outer product a contraction too; shape 2 counts its addition.
    update = contraction_flops("td,tv->dv", (2, D), (2, V)) // 2
    return read * (2 if corrects else 1) + update


def delta_flops(
    B: int, T: int, heads: int, K: int, V: int, p: int = 1, chunk_size: int = 0, *,
    corrects: bool = True, with_state: bool = False,
) -> int:  # fmt: skip
    """Forward FLOPs of `delta_attention` for B sequences of T tokens and so many value heads.

    A single chunk without a state to read or return needs none. `corrects`: whether there is a beta.
    """
    C = min(resolve_chunk_size(chunk_size, T, K, p), T)
    # Meeting one earlier token: a score and a value, or a column of the triangular system.
    pair = contraction_flops("k,k->", (K,), (K,)) + contraction_flops("j,jv->v", (2,), (2, V)) // 2
    state = _state_flops(K, V, p, corrects=corrects) if with_state or C < T else 0
    seen = (C + 1) / 2 + ((C - 1) / 2 if corrects else 0)
    return round(B * T * heads * (state + pair * seen))


def backward_flops(
    B: int, T: int, heads: int, K: int, V: int, p: int = 1, chunk_size: int = 0, *,
    corrects: bool = True, with_state: bool = False,
) -> int:  # fmt: skip
    """Backward FLOPs: two products for every one of the forward pass (recomputation is not counted)."""
    return 2 * delta_flops(B, T, heads, K, V, p, chunk_size, corrects=corrects, with_state=with_state)


def step_flops(B: int, heads: int, K: int, V: int, p: int = 1, *, corrects: bool = True) -> int:
    """FLOPs of one decoded token for B sequences."""
    return B * heads * _state_flops(K, V, p, corrects=corrects)
