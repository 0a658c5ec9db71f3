"""The softmax attention that a converted layer had, from the queries, keys and values that it still computes."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["SoftmaxInputs", "softmax_between_heads"]


class SoftmaxInputs(NamedTuple):
    """q `[B, Hq, T, K]`, k `[B, Hk, T, K]` and v `[B, Hk, T, V]`, rotated; the factor on scores; where sequences begin.

    `resets` is `[B, T]` bool, or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float | None
    resets: Tensor | None


def softmax_between_heads(module: Any, inputs: SoftmaxInputs, options: Mapping[str, Any]) -> Tensor:
    """Return outputs `[B, T, Hq, V]`, by transformers' own functions, without dropout.

    Args:
        module: a converted attention module.
        inputs: of whole sequences, nothing before them.
        options: what else the module says of its attention: its window, soft cap and sinks.
    """
    query, key, value, scaling, resets = inputs
    kept = {name: options[name] for name in ("softcap", "s_aux") if options.get(name) is not None}
    visible = _visible(query, resets, options.get("sliding_window"))
    if not kept:
        plain = resets is None and options.get("sliding_window") is None
        o, _ = sdpa_attention_forward(module, query, key, value, None if plain else visible, scaling=scaling)
        return o
    eager = sys.modules[module.base.__module__].eager_attention_forward  # alone knows soft caps and sinks
    hidden = torch.zeros((), device=query.device, dtype=query.dtype).masked_fill(~visible, torch.finfo(query.dtype).min)
    return eager(module, query, key, value, hidden, scaling=scaling, **kept)[0]


def _visible(query: Tensor, resets: Tensor | None, window: int | None) -> Tensor:
    """Return which tokens each token sees, `[B or 1, 1, T, T]` bool."""
    places = torch.arange(query.shape[2], device=query.device)
    distance = places[:, None] - places
    visible = (distance >= 0)[None] if window is None else ((distance >= 0) & (distance < window))[None]
    if resets is not None:
        sequence = resets.cumsum(1)
        visible = visible & (sequence[:, :, None] == sequence[:, None])
    return visible[:, None]
