"""The Triton implementation behind the op: widths are filled up to those of the kernels, and gradients added up."""

import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.delta.call import Gradients, Incoming, Inputs, Options, Outputs, Saved
from zoo.kernels.delta.triton import passes
from zoo.kernels.delta.triton.plan import fill_width, make_plan
from zoo.kernels.launch import unseen
from zoo.kernels.power.call import or_empty
from zoo.kernels.power.heads import gather_heads

__all__ = ["fake_saved", "triton_backward", "triton_forward"]


def fake_saved(inputs: Inputs, options: Options) -> Saved:
    """What `triton_forward` saves, without numbers."""
    plan, q = make_plan(inputs, options), inputs.q
    found = Saved(*(or_empty(None, q) for _ in Saved._fields))
    if not options.save_errors:
        return found
    of_slots = (plan.slots, plan.heads.value)
    if plan.corrects:
        errors = q.new_empty(plan.batch, plan.tokens, plan.heads.value, plan.V, dtype=plan.dtype)
        inverses = q.new_empty(*of_slots, plan.C, plan.C, dtype=plan.inverse_dtype)
        found = found._replace(errors=errors, inverses=inverses)
    return found._replace(states=q.new_empty(*of_slots, plan.K, plan.V, dtype=plan.dtype))


def _fill(x: Tensor, K: int, V: int) -> Tensor:
    """With its last dimension as wide as the kernels take it, and, of a state, the one before: `[.., K, V]`."""
    missing = (0, V - x.shape[-1], 0, K - x.shape[-2])
    return F.pad(x, missing) if any(missing) else x


def _filled(inputs: Inputs) -> Inputs:
    """Channels of zeros are read and written by nobody."""
    q, k, v, log_g, _, S, _ = inputs
    K, V = fill_width(k.shape[-1]), fill_width(v.shape[-1])
    return inputs._replace(
        q=_fill(q, q.shape[-2], K),
        k=_fill(k, k.shape[-2], K),
        v=_fill(v, v.shape[-2], V),
        log_g=log_g if log_g is None or not inputs.gates_channels else _fill(log_g, log_g.shape[-2], K),
        S=None if S is None else _fill(S, K, V),
    )


def _like(x: Tensor, like: Tensor | None) -> Tensor:
    """Of a result what belongs to channels that were there."""
    if like is None or x.dim() < 4 or x.shape[-2:] == like.shape[-2:]:
        return x
    return x[..., : like.shape[-2], : like.shape[-1]].contiguous()


def triton_forward(inputs: Inputs, options: Options) -> Outputs:
    """See `zoo.kernels.delta.op.attend`."""
    with unseen(inputs.q.device):
        outputs = passes.forward(_filled(inputs), options)
    K, V = inputs.k.shape[-1], inputs.v.shape[-1]
    S = outputs.S if outputs.S.dim() == 1 else outputs.S[:, :, :K, :V].contiguous()
    return outputs._replace(o=_like(outputs.o, inputs.v), S=S)


def triton_backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Gradients of all inputs."""
    filled, (do, dS) = _filled(inputs), incoming
    K, V = filled.k.shape[-1], filled.v.shape[-1]
    filled_incoming = Incoming(_fill(do, do.shape[-2], V), None if dS is None else _fill(dS, K, V))
    with unseen(inputs.q.device):
        found = passes.backward(filled_incoming, filled, saved, options)
    q, k, v = (gather_heads(dx, x.shape[2], 2).to(x.dtype) for dx, x in zip(found[:3], inputs[:3], strict=True))
    found = found._replace(q=q, k=k, v=v)
    return Gradients(*(_like(dx, x) for dx, x in zip(found, inputs[:6], strict=True)))
