"""The passes for p >= 2: errors stretch by stretch, and power attention for what follows from them.

Forward, `o = power attention (q, k, u)` with what is written, `u = beta e`, as values.

Backward, power attention gives the gradients for q, k, gates and state, and that of u as far as outputs read it. What
later keys read of u comes to it from the last token to the first, `d_t = du_t - sum_{j > t} (k_j . k_t)^p w_j`, times
decays, with `w = beta d`: these are the forward pass's errors of du, backwards in time. Then `dv = w`, `dbeta = e . d`,
and reads have the gradient -w. The read of token t is an output of power attention at token t - 1 for the query k_t,
times the gate of t: another backward pass of it, one token longer for what the first one reads of a state.

Tokens of float16 are computed with in float32: what is written would lose digits that a state keeps.
"""

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels.delta.call import Gradients, Incoming, Inputs, Options, Outputs, Saved
from zoo.kernels.delta.triton.stretches import find_errors
from zoo.kernels.launch import Launch, compile_together, rehearsal, unseen
from zoo.kernels.power import call as power
from zoo.kernels.power.call import or_empty
from zoo.kernels.power.triton import op as power_op
from zoo.kernels.power.triton import passes
from zoo.kernels.power.triton.plan import make_plan
from zoo.kernels.power.triton.prepare import LOWEST_GATE
from zoo.kernels.recording import Recorder
from zoo.kernels.triton_support import INTERPRETED

__all__ = ["backward", "fake_saved", "forward"]


def fake_saved(inputs: Inputs, options: Options) -> Saved:
    """What `forward` saves, without numbers."""
    saves = options.save_errors and inputs.beta is not None
    errors = torch.empty(inputs.v.shape, dtype=torch.float32, device=inputs.v.device) if saves else None
    return Saved(or_empty(errors, inputs.q), or_empty(None, inputs.q))


_errors = Recorder(find_errors)
_prepared: set[Hashable] = set()  # kinds of calls


def _rehearse(inputs: Inputs, options: Options) -> list[Launch]:
    """What a forward pass launches, and the backward pass if anything is saved for one."""
    with FakeTensorMode() as mode, rehearsal() as launches:
        inputs = Inputs._make(None if x is None else mode.from_tensor(x) for x in inputs)
        k, v, log_g, beta, S = inputs.k, inputs.v, inputs.log_g, inputs.beta, inputs.S
        attention, wanted = _attention(inputs, v), _options(options, scale=1.0, return_state=options.return_state)
        passes.forward(attention, wanted)
        if beta is not None:
            find_errors(k, v, log_g, beta, S, inputs.cu_seqlens, options.p)
        if options.save_errors:
            saved = power.Saved(*(or_empty(None, k) for _ in power.Saved._fields))
            passes.backward(power.Incoming(torch.empty_like(v), None, None), attention, saved, wanted)
    return launches


def _prepare(inputs: Inputs, options: Options) -> None:
    """Before the first call of its kind, compile its kernels side by side."""
    plan = make_plan(_attention(inputs, inputs.v), _options(options, scale=1.0, return_state=False))
    kind = (inputs.q.device, plan.heads, plan.K, plan.V, plan.single, *(x is None for x in inputs), *options)
    if kind not in _prepared and not INTERPRETED:
        _prepared.add(kind)
        compile_together(_rehearse(inputs, options), inputs.q.device)


def _attention(inputs: Inputs, written: Tensor) -> power.Inputs:
    """Power attention of what is written."""
    q, k, _, log_g, _, S, cu_seqlens = inputs
    z = None if S is None else S.new_zeros(S.shape[:-1])
    return power.Inputs(q, k, written.to(q.dtype), log_g, S, z, cu_seqlens=cu_seqlens)


def _options(options: Options, *, scale: float, return_state: bool) -> power.Options:
    return power.Options(options.p, scale, normalize=False, use_triton=True, return_state=return_state)


def _wide_enough(inputs: Inputs) -> Inputs:
    if inputs.q.dtype != torch.float16:
        return inputs
    return inputs._replace(q=inputs.q.float(), k=inputs.k.float(), v=inputs.v.float())


def forward(inputs: Inputs, options: Options) -> Outputs:
    """Output, last state and errors, the latter two where they are asked for."""
    dtype, inputs = inputs.v.dtype, _wide_enough(inputs)
    with unseen(inputs.q.device):
        _prepare(inputs, options)
        written, errors = inputs.v, None
        if inputs.beta is not None:
            errors, written = _errors(
                inputs.k, inputs.v, inputs.log_g, inputs.beta, inputs.S, inputs.cu_seqlens, options.p
            )
        wanted = _options(options, scale=options.scale, return_state=options.return_state)
        found = power_op.triton_forward(_attention(inputs, written), wanted)
    errors = errors if options.save_errors else None
    return Outputs(found.o.to(dtype), found.S, or_empty(errors, inputs.q), or_empty(None, inputs.q))


def _backward(do: Tensor, dS: Tensor | None, inputs: power.Inputs, options: power.Options) -> power.Gradients:
    nothing = or_empty(None, inputs.q)
    dz = None if dS is None else dS.new_zeros(dS.shape[:-1])
    saved = power.Saved(nothing, nothing, nothing, nothing)
    return power_op.triton_backward(power.Incoming(do, dS, dz), inputs, saved, options)


def _backwards_in_time(inputs: Inputs, du: Tensor) -> tuple[Tensor | None, ...]:
    """Of `find_errors` what it takes for `d`. What a gate decays lies on its other side."""
    log_g, cu_seqlens = inputs.log_g, inputs.cu_seqlens
    assert inputs.beta is not None
    if log_g is not None:
        log_g = torch.cat((torch.zeros_like(log_g[:, :1]), log_g.flip(1)[:, :-1]), 1)
    if cu_seqlens is not None:
        cu_seqlens = inputs.q.shape[1] - cu_seqlens.flip(0)
    return inputs.k.flip(1), du.flip(1).contiguous(), log_g, inputs.beta.flip(1), None, cu_seqlens


class _Reads(NamedTuple):
    """Reads as outputs of power attention, with a token before each sequence, which writes nothing."""

    at: Tensor  # where each token is [T]
    inputs: power.Inputs
    do: Tensor


def _reads(inputs: Inputs, written: Tensor, dreads: Tensor) -> _Reads:
    q, k, _, log_g, _, _, cu_seqlens = inputs
    T, rows = q.shape[1], 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    at = torch.arange(1, T + 1, device=q.device)
    if cu_seqlens is not None:
        at += torch.searchsorted(cu_seqlens[1:], at - 1, right=True)
        cu_seqlens = cu_seqlens + torch.arange(rows + 1, device=q.device, dtype=cu_seqlens.dtype)

    def place(x: Tensor, at: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], T + rows, *x.shape[2:]).index_copy_(1, at, x)

    if log_g is not None:
        dreads = dreads * log_g.exp()[..., None]
        log_g = place(log_g, at)
    shifted = inputs._replace(q=place(k, at - 1), k=place(k, at), log_g=log_g, cu_seqlens=cu_seqlens)
    return _Reads(at, _attention(shifted, place(written, at)), place(dreads.to(q.dtype), at - 1))


def backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Gradients of all inputs."""
    dtype, inputs = inputs.q.dtype, _wide_enough(inputs)
    do, beta, errors, empty = incoming.do.to(inputs.q.dtype), inputs.beta, saved.errors, or_empty(None, inputs.q)
    with unseen(inputs.q.device):
        of_outputs = _options(options, scale=options.scale, return_state=incoming.dS is not None)
        if beta is None:
            found = _backward(do, incoming.dS, _attention(inputs, inputs.v), of_outputs)
            q, k, v = (x.to(dtype) for x in found[:3])
            return Gradients(q, k, v, found.log_g, empty, found.S)
        written = (errors * beta[..., None].float()).to(inputs.q.dtype)
        found = _backward(do, incoming.dS, _attention(inputs, written), of_outputs)
        d = _errors(*_backwards_in_time(inputs, found.v), options.p)[0].flip(1)
        dv = d * beta[..., None].float()
        reads = _reads(inputs, written, -dv)
        others = _backward(reads.do, None, reads.inputs, _options(options, scale=1.0, return_state=False))
    dk = found.k.float() + others.k.index_select(1, reads.at) + others.q.index_select(1, reads.at - 1)
    log_g = empty
    if inputs.log_g is not None:
        of_reads = (dv * (errors - inputs.v.float())).sum(-1)  # of a gate that is the read's own factor
        log_g = found.log_g + others.log_g.index_select(1, reads.at) + of_reads
        log_g = torch.where(inputs.log_g <= LOWEST_GATE, 0, log_g)
    S = empty if inputs.S is None else found.S + others.S
    dbeta = (errors * d).sum(-1).to(beta.dtype)
    return Gradients(found.q.to(dtype), dk.to(dtype), dv.to(dtype), log_g, dbeta, S)
