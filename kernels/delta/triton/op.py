"""The Triton implementation behind the op, from p = 2 on that of `powers`.

For p = 1 widths are filled up to those of the kernels, and gradients added up.

What lies between, a pass, is launched as it was recorded.
"""

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels.delta.call import Gradients, Incoming, Inputs, Options, Outputs, Saved
from zoo.kernels.delta.triton import passes, powers
from zoo.kernels.delta.triton.plan import count_groups, fill_width, make_plan, most_groups, wanted
from zoo.kernels.delta.triton.scan import room
from zoo.kernels.launch import Launch, compile_together, rehearsal, unseen
from zoo.kernels.power.call import or_empty
from zoo.kernels.power.heads import gather_heads
from zoo.kernels.recording import Recorder
from zoo.kernels.registration import flat
from zoo.kernels.triton_support import INTERPRETED

__all__ = ["fake_saved", "triton_backward", "triton_forward"]


def fake_saved(inputs: Inputs, options: Options) -> Saved:
    """What `triton_forward` saves, without numbers."""
    if options.p > 1:
        return powers.fake_saved(inputs, options)
    plan, q = make_plan(inputs, options), inputs.q
    starts = room(plan, q, most_groups(plan), plan.K, plan.V, dtype=torch.float32) if options.save_errors else None
    return Saved(or_empty(None, q), or_empty(starts, q))


def _fill(x: Tensor, K: int, V: int) -> Tensor:
    """With its last dimension as wide as the kernels take it, and, of a state, the one before: `[.., K, V]`."""
    missing = (0, V - x.shape[-1], 0, K - x.shape[-2])
    return F.pad(x, missing) if any(missing) else x


def _filled(inputs: Inputs) -> Inputs:
    """As kernels take them. Channels of zeros are read and written by nobody."""
    q, k, v, log_g, _, S, _ = inputs
    K, V = fill_width(k.shape[-1]), fill_width(v.shape[-1])
    if log_g is not None:
        log_g = (_fill(log_g, log_g.shape[-2], K) if inputs.gates_channels else log_g).float()
    return Inputs._make(
        None if x is None else x.contiguous()
        for x in (
            _fill(q, q.shape[-2], K),
            _fill(k, k.shape[-2], K),
            _fill(v, v.shape[-2], V),
            log_g,
            inputs.beta,
            None if S is None else _fill(S, K, V).float(),
            inputs.cu_seqlens,
        )
    )


def _like(x: Tensor, like: Tensor | None) -> Tensor:
    """Of a result what belongs to channels that were there."""
    if like is None or x.dim() < 4 or x.shape[-2:] == like.shape[-2:]:
        return x
    return x[..., : like.shape[-2], : like.shape[-1]].contiguous()


def _whole(parts: Tensor, like: Tensor | None) -> Tensor:
    """A gradient, added up if it was taken in parts."""
    return parts if like is None or parts.dim() == like.dim() else parts.sum(-1).to(like.dtype)


def _rehearse(inputs: Inputs, options: Options) -> list[Launch]:
    """What a forward pass launches, and the backward pass if anything is saved for one."""
    with FakeTensorMode() as mode, rehearsal() as launches:
        inputs = Inputs._make(None if x is None else mode.from_tensor(x) for x in inputs)
        outputs = passes.forward(inputs, options)
        if options.save_errors:
            passes.backward(Incoming(torch.empty_like(outputs.o), None), inputs, outputs.saved, options)
    return launches


_prepared: set[Hashable] = set()  # kinds of calls


def _prepare(inputs: Inputs, options: Options) -> None:
    """Before the first call of its kind, compile its kernels side by side."""
    plan, (q, k, v, *_) = make_plan(inputs, options), inputs
    absent = [x is None for x in inputs]
    kind = (
        q.device,
        q.dtype,
        plan.heads,
        k.shape[3],
        v.shape[3],
        plan.channels,
        count_groups(plan) > 0,
        *absent,
        *options,
    )
    if kind not in _prepared and not INTERPRETED:
        _prepared.add(kind)
        compile_together(_rehearse(inputs, options), q.device)


_forward = Recorder(flat(passes.forward), prepare=flat(_prepare), variant=wanted)
_backward = Recorder(flat(passes.backward), variant=wanted)


def _launch(recorder: Recorder, *arguments: Any) -> tuple[Tensor, ...]:
    with unseen(arguments[0].device):
        return recorder(*arguments)


def triton_forward(inputs: Inputs, options: Options) -> Outputs:
    """See `zoo.kernels.delta.op.attend`."""
    if options.p > 1:
        return powers.forward(inputs, options)
    outputs = Outputs(*_launch(_forward, *_filled(inputs), *options))
    K, V = inputs.k.shape[-1], inputs.v.shape[-1]
    S = outputs.S if outputs.S.dim() == 1 else outputs.S[:, :, :K, :V].contiguous()
    return outputs._replace(o=_like(outputs.o, inputs.v), S=S)


def triton_backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Gradients of all inputs."""
    if options.p > 1:
        return powers.backward(incoming, inputs, saved, options)
    filled, (do, dS) = _filled(inputs), incoming
    K, V = filled.k.shape[-1], filled.v.shape[-1]
    do = _fill(do, do.shape[-2], V).to(filled.v.dtype).contiguous()
    dS = None if dS is None else _fill(dS, K, V).float().contiguous()
    found = Gradients(*_launch(_backward, do, dS, *filled, *saved, *options))
    q, k, v = (gather_heads(dx, x.shape[2], 2).to(x.dtype) for dx, x in zip(found[:3], inputs[:3], strict=True))
    log_g, beta = (_whole(dx, x) for dx, x in ((found.log_g, inputs.log_g), (found.beta, inputs.beta)))
    found = found._replace(q=q, k=k, v=v, log_g=log_g, beta=beta)
    return Gradients(*(_like(dx, x) for dx, x in zip(found, inputs[:6], strict=True)))
