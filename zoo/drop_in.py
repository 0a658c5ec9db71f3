"""Power attention in the place, with the arguments and in the layout of PyTorch's own attention."""

from torch import Tensor

from zoo.errors import InputError
from zoo.kernels.power import power_attention

__all__ = ["scaled_dot_product_power_attention"]


def scaled_dot_product_power_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    p: int = 2,
    log_g: Tensor | None = None,
    normalize: bool | None = None,
) -> Tensor:
    """Power attention called as `torch.nn.functional.scaled_dot_product_attention` is, heads before tokens.

    What PyTorch's function can do and a sum over the past cannot is refused by name, never left out silently.

    Args:
        query: `[B, Hq, T, K]`, float16, bfloat16, float32 or float64.
        key: `[B, Hk, T, K]`.
        value: `[B, Hk, T, V]`.
        attn_mask: None. Padding on the left and documents are gates of `-inf` at their first tokens.
        dropout_p: 0.
        is_causal: True, which is not the default here either.
        scale: factor on `query . key`; None: `1 / sqrt(K)`.
        enable_gqa: whether Hk may be less than Hq, which it divides; each key head is then shared by a group.
        p: the power of the scores.
        log_g: log gates `[B, Hk, T]`, float32, at most 0; None: no gates.
        normalize: divide by the sum of weights; None: for even p.

    Returns:
        `[B, Hq, T, V]`.

    Raises:
        InputError: names the argument, what it was and what it must be.
    """
    if attn_mask is not None:
        raise InputError(
            "attn_mask: expected None, power attention has no scores to mask; padding on the left, and documents, are "
            "log gates of -inf at their first token"
        )
    if dropout_p:
        raise InputError(f"dropout_p: expected 0, power attention has no weights to drop, was {dropout_p}")
    if not is_causal:
        raise InputError("is_causal: expected True, a sum over the past sees no later token, was False")
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.dim() != 4:
            raise InputError(f"{name}: expected [B, H, T, {'V' if x is value else 'K'}], was {list(x.shape)}")
    if key.shape[2] != query.shape[2]:
        raise InputError(
            f"key: expected {query.shape[2]} tokens as in query, was {key.shape[2]}; what came before is a state, see "
            "zoo.power_attention"
        )
    if not enable_gqa and key.shape[1] != query.shape[1]:
        raise InputError(f"key: expected {query.shape[1]} heads as in query, or enable_gqa=True, was {key.shape[1]}")
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    gates = None if log_g is None else log_g.transpose(1, 2)
    return power_attention(q, k, v, gates, p=p, scale=scale, normalize=normalize).o.transpose(1, 2)
