"""Who takes part in benchmarks of other ops than power attention: the delta family, and softmax over documents."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.bench.subjects import CONTESTANTS, Case, Contestant, Mix, Refusal, import_peer, make_inputs
from zoo.kernels.delta import delta_attention
from zoo.kernels.interval_attention import interval_attention
from zoo.kernels.interval_attention.mask import attend_by_mask
from zoo.kernels.rwkv7 import rwkv7

__all__ = ["FLOOR", "OPS", "document_starts"]

FLOOR = -0.607  # of RWKV-7's log decays
_OF_FLA = {"gla": "gla", "delta": "delta_rule", "gated-delta": "gated_delta_rule", "kda": "kda"}
"""What flash-linear-attention calls the ops of the delta rule's family."""


def _delta_inputs(op: str, case: Case, tokens: int, _contestant: Contestant) -> list[Tensor | None]:
    """Random q and k (of unit length), v, log_g (float32; 0.9 to 0.9999, by head) and beta, where the op has them."""
    generator = torch.Generator(case.device).manual_seed(tokens)
    B, H, K = case.batch_size, case.heads, case.head_width
    normal = partial(torch.randn, generator=generator, device=case.device)
    q, k, v = (normal(B, tokens, H, K) for _ in range(3))
    if op != "gla":
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    logits, log_g = torch.linspace(math.log(9), math.log(9999), H, device=case.device), None
    if op == "gated-delta":
        log_g = F.logsigmoid(logits + normal(B, tokens, H))
    elif op in ("gla", "kda"):
        log_g = F.logsigmoid(logits[:, None] + normal(B, tokens, H, K))
    beta = None if op == "gla" else normal(B, tokens, H).sigmoid().to(case.dtype)
    inputs = (*(x.to(case.dtype) for x in (q, k, v)), log_g, beta)
    return [None if x is None else x.requires_grad_() for x in inputs]


def _delta(_case: Case) -> Mix:
    return torch.compile(lambda *inputs: delta_attention(*inputs).o, fullgraph=True)


def _fla_delta(op: str, _case: Case) -> Mix:
    """The op of flash-linear-attention, which is not for compiling."""
    function = import_peer(f"fla.ops.{_OF_FLA[op]}", f"chunk_{_OF_FLA[op]}", "flash-linear-attention")
    given = {"gla": "qkvg", "delta": ("q", "k", "v", "", "beta")}.get(op, ("q", "k", "v", "g", "beta"))
    return lambda *inputs: function(**{name: x for name, x in zip(given, inputs, strict=False) if name})[0]


def _rwkv7_inputs(case: Case, tokens: int, _contestant: Contestant) -> list[Tensor | None]:
    """Random r, log_w (float32), k, v, kappa and a `[B, T, H, N]`, as RWKV-7 makes them, requiring gradients."""
    generator = torch.Generator(case.device).manual_seed(tokens)
    shape = (6, case.batch_size, tokens, case.heads, case.head_width)
    r, w, k, v, kappa, a = torch.randn(shape, generator=generator, device=case.device)
    r, k, v, kappa, a = (x.to(case.dtype) for x in (r, k, v, F.normalize(kappa, dim=-1), a.sigmoid()))
    return [x.requires_grad_() for x in (r, -0.6065 * w.sigmoid(), k, v, kappa, a)]


def _rwkv7(impl: str | None, _case: Case) -> Mix:
    """Our op, compiled: as it chooses, or in PyTorch."""
    return torch.compile(lambda *inputs: rwkv7(*inputs, log_w_floor=FLOOR, impl=impl).o, fullgraph=True)  # type: ignore[arg-type]


def _fla_rwkv7(case: Case) -> Mix:
    """fla-core's function, given what our op is given: it takes -kappa and kappa * a in the place of the last two."""
    if not case.device.startswith("cuda") or case.dtype != torch.bfloat16:
        # float32 would be multiplied as TensorFloat-32
        raise Refusal(f"needs a GPU and bfloat16, was {case.device} and {case.dtype}")
    function = import_peer("fla.ops.rwkv7", "chunk_rwkv7", "'mixer-zoo[fla]'")
    return lambda *inputs: function(*inputs[:4], -inputs[4], inputs[4] * inputs[5], lower_bound=FLOOR)[0]


def document_starts(documents: int, tokens: int, device: str) -> Tensor:
    """Return where documents start, `[n]` int64 from 0 on: the later, the longer."""
    return torch.arange(documents).double().div(documents).pow(1.5).mul(tokens).long().unique().to(device)


def _interval(documents: int, q: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last key that each query sees, `[1, T]` int64 both."""
    starts = document_starts(documents, q.shape[1], str(q.device))
    last = torch.arange(q.shape[1], device=q.device)
    return starts[torch.searchsorted(starts, last, right=True) - 1][None], last[None]


def _packed(case: Case) -> Mix:
    """Our op, compiled, with the making of its block mask; where documents start comes from outside, as in a model."""
    attend = torch.compile(interval_attention, fullgraph=True)
    return lambda q, k, v: attend(q, k, v, *_interval(case.documents, q))


def _varlen(case: Case) -> Mix:
    """`torch.nn.attention.varlen`, which takes rows that are joined."""
    if not case.device.startswith("cuda"):
        raise Refusal("needs a GPU")
    varlen_attn = import_peer("torch.nn.attention.varlen", "varlen_attn", "torch")
    former = "is_causal" in inspect.signature(varlen_attn).parameters  # torch 2.11
    causal = {"is_causal": True} if former else {"window_size": (-1, 0)}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, T = q.shape[:2]
        starts = T * torch.arange(B, device=q.device)[:, None] + document_starts(case.documents, T, str(q.device))
        edges = F.pad(starts.flatten(), (0, 1), value=B * T).int()
        longest = int(edges.diff().max())
        o: Tensor = varlen_attn(*(x.flatten(0, 1) for x in (q, k, v)), edges, edges, longest, longest, **causal)
        return o.unflatten(0, (B, T))

    return attend


def _contestants(inputs: Callable[..., list[Tensor | None]], **builds: Callable[[Case], Mix]) -> dict[str, Contestant]:
    return {name: Contestant(name, build, inputs=inputs, tunes=name == "fla") for name, build in builds.items()}


OPS: Mapping[str, Mapping[str, Contestant]] = {
    "power": CONTESTANTS,
    **{op: _contestants(partial(_delta_inputs, op), ours=_delta, fla=partial(_fla_delta, op)) for op in _OF_FLA},
    "rwkv7": _contestants(
        _rwkv7_inputs, ours=partial(_rwkv7, None), fla=_fla_rwkv7, chunked=partial(_rwkv7, "chunked")
    ),
    "packed-softmax": _contestants(
        lambda case, *rest: make_inputs(case._replace(gated=False), *rest)[:3],
        ours=_packed, varlen=_varlen,
        mask=lambda case: lambda q, k, v: attend_by_mask(q, k, v, *_interval(case.documents, q)),
    ),
}  # fmt: skip
"""Contestants by op."""
