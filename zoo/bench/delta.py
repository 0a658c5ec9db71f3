"""`zoo bench delta`: the delta rule's family by our op and by flash-linear-attention's."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.bench.subjects import Case, Contestant, Mix, import_peer
from zoo.kernels.delta import delta_attention

__all__ = ["OPS"]


class _Kind(NamedTuple):
    """One op of the family, and what flash-linear-attention calls it."""

    gates: str
    """none, head or channel."""
    corrects: bool
    module: str
    function: str


_KINDS = {
    "gla": _Kind("channel", False, "fla.ops.gla", "chunk_gla"),
    "delta": _Kind("none", True, "fla.ops.delta_rule", "chunk_delta_rule"),
    "gated-delta": _Kind("head", True, "fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
    "kda": _Kind("channel", True, "fla.ops.kda", "chunk_kda"),
}


def _inputs(kind: _Kind, case: Case, tokens: int, _contestant: Contestant) -> list[Tensor | None]:
    """Random q and k of unit length, v, log_g (float32) and beta, those that the op has, requiring gradients.

    Gates keep 0.9 to 0.9999 of the past a token, spread over heads, and differ by channel where there is one a channel.
    """
    generator = torch.Generator(case.device).manual_seed(tokens)
    B, H, K = case.batch_size, case.heads, case.head_width

    def normal(*shape: int) -> Tensor:
        return torch.randn(B, tokens, H, *shape, generator=generator, device=case.device)

    q, k = (F.normalize(normal(K), dim=-1) if kind.corrects else normal(K) for _ in range(2))
    logits = torch.linspace(math.log(9), math.log(9999), H, device=case.device)
    log_g = None
    if kind.gates == "head":
        log_g = F.logsigmoid(logits + normal())
    elif kind.gates == "channel":
        log_g = F.logsigmoid(logits[:, None] + normal(K))
    q, k, v = (x.to(case.dtype) for x in (q, k, normal(K)))
    beta = normal().sigmoid().to(case.dtype) if kind.corrects else None
    return [None if x is None else x.requires_grad_() for x in (q, k, v, log_g, beta)]


def _ours(_case: Case) -> Mix:
    """Our op, compiled once for all lengths."""

    def mix(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, beta: Tensor | None) -> Tensor:
        return delta_attention(q, k, v, log_g, beta).o

    return torch.compile(mix, fullgraph=True)


def _peer(kind: _Kind, _case: Case) -> Mix:
    """The op of flash-linear-attention, which is not for compiling."""
    function: Callable[..., Any] = import_peer(kind.module, kind.function, "flash-linear-attention")

    def mix(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, beta: Tensor | None) -> Tensor:
        given = {"g": log_g, "beta": beta}
        o: Tensor = function(q, k, v, **{name: value for name, value in given.items() if value is not None})[0]
        return o

    return mix


OPS: dict[str, tuple[Contestant, ...]] = {
    name: (
        Contestant("ours", _ours, inputs=partial(_inputs, kind)),
        Contestant("fla", partial(_peer, kind), inputs=partial(_inputs, kind)),
    )
    for name, kind in _KINDS.items()
}
"""Entrants by op."""
