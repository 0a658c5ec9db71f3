"""The passes for p >= 2: errors stretch by stretch, and power attention for what follows from them.

Forward, `o = power attention (q, k, u)` with what is written, `u = beta e`, as values.

Backward, power attention gives the gradients for q, k, gates and state, and that of u as far as outputs read it. What
later keys read of u comes to it from the last token to the first, `d_t = du_t - sum_{j > t} (k_j . k_t)^p w_j`, times
decays, with `w = beta d`: these are the forward pass's errors of du, backwards in time. Then `dv = w`, `dbeta = e . d`,
and reads have the gradient -w. The read of token t is an output of power attention at token t - 1 for the query k_t,
times the gate of t: another backward pass of it, without values. What the first token of a sequence reads, of a state
that came in, is one more, of that token alone.

Tokens of float16 are computed with in float32: what is written would lose digits that a state keeps.
"""

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels.delta.call import Gradients, Incoming, Inputs, Options, Outputs, Saved
from zoo.kernels.delta.triton.reads import add_key_gradients, read_gradients, scaled, turned
from zoo.kernels.delta.triton.stretches import find_errors
from zoo.kernels.launch import Launch, compile_together, rehearsal, unseen
from zoo.kernels.power import call as power
from zoo.kernels.power.call import or_empty
from zoo.kernels.power.heads import gather_heads
from zoo.kernels.power.triton import op as power_op
from zoo.kernels.power.triton import passes
from zoo.kernels.power.triton.configs import wanted
from zoo.kernels.power.triton.plan import make_plan
from zoo.kernels.power.triton.prepare import LOWEST_GATE
from zoo.kernels.recording import Recorder
from zoo.kernels.registration import flat
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
        attention, asked = _attention(inputs, v), _options(options, scale=1.0, return_state=options.return_state)
        passes.forward(attention, asked)
        if beta is not None:
            find_errors(k, v, log_g, beta, S, inputs.cu_seqlens, options.p)
        if options.save_errors:
            saved = power.Saved(*(or_empty(None, k) for _ in power.Saved._fields))
            passes.backward(power.Incoming(torch.empty_like(v), None, None), attention, saved, asked)
            if beta is not None:
                errors = torch.empty(v.shape, dtype=torch.float32, device=v.device)
                read_gradients(inputs, errors, errors, _starts(inputs))
                add_key_gradients(k, k, k)
                scaled(errors, beta, k.dtype)
                turned(v)
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


def _as_read(inputs: Inputs) -> Inputs:
    """As kernels read them: gates and rates one behind the other, as tokens are, and no float16."""
    log_g, beta = (None if x is None else x.contiguous() for x in (inputs.log_g, inputs.beta))
    inputs = inputs._replace(log_g=log_g, beta=beta)
    if inputs.q.dtype != torch.float16:
        return inputs
    return inputs._replace(q=inputs.q.float(), k=inputs.k.float(), v=inputs.v.float())


def forward(inputs: Inputs, options: Options) -> Outputs:
    """Output, last state and errors, the latter two where they are asked for."""
    dtype, inputs = inputs.v.dtype, _as_read(inputs)
    with unseen(inputs.q.device):
        _prepare(inputs, options)
        written, errors = inputs.v, None
        if inputs.beta is not None:
            errors, written = _errors(
                inputs.k, inputs.v, inputs.log_g, inputs.beta, inputs.S, inputs.cu_seqlens, options.p
            )
        asked = _options(options, scale=options.scale, return_state=options.return_state)
        found = power_op.triton_forward(_attention(inputs, written), asked)
    errors = errors if options.save_errors else None
    return Outputs(found.o.to(dtype), found.S, or_empty(errors, inputs.q), or_empty(None, inputs.q))


def _incoming(do: Tensor, dS: Tensor | None) -> power.Incoming:
    return power.Incoming(do, dS, None if dS is None else dS.new_zeros(dS.shape[:-1]))


_states = Recorder(flat(passes.states_for_backward), variant=wanted)


def _saved(inputs: power.Inputs, options: power.Options) -> power.Saved:
    """The states before chunks, which both backward passes read."""
    nothing = or_empty(None, inputs.q)
    return power.Saved(nothing, nothing, *_states(*power_op.laid_out(inputs), *options))


def _nothing_saved(inputs: power.Inputs) -> power.Saved:
    return power.Saved(*(or_empty(None, inputs.q) for _ in power.Saved._fields))


def _backward(
    do: Tensor, dS: Tensor | None, inputs: power.Inputs, saved: power.Saved, options: power.Options
) -> power.Gradients:
    return power_op.triton_backward(_incoming(do, dS), inputs, saved, options)


_gradients_of_reads = Recorder(flat(passes.backward_without_values), variant=wanted)


def _backward_of_reads(do: Tensor, inputs: power.Inputs, saved: power.Saved, options: power.Options) -> power.Gradients:
    """As `_backward`, without the gradient of what was written."""
    inputs = power_op.laid_out(inputs)
    arguments = (*_incoming(do, None), *inputs, *saved, *options)
    found = power.Gradients(*_gradients_of_reads(*arguments))
    q, k = (gather_heads(dx, x.shape[2], 2).to(x.dtype) for dx, x in zip(found[:2], inputs[:2], strict=True))
    return found._replace(q=q, k=k)


def _backwards_in_time(inputs: Inputs, du: Tensor) -> tuple[Tensor | None, ...]:
    """Of `find_errors` what it takes for `d`. What a gate decays lies on its other side."""
    log_g, cu_seqlens = inputs.log_g, inputs.cu_seqlens
    assert inputs.beta is not None
    if log_g is not None:
        log_g = torch.cat((torch.zeros_like(log_g[:, :1]), log_g.flip(1)[:, :-1]), 1)
    if cu_seqlens is not None:
        cu_seqlens = inputs.q.shape[1] - cu_seqlens.flip(0)
    return turned(inputs.k), turned(du), log_g, inputs.beta.flip(1), None, cu_seqlens


def _starts(inputs: Inputs) -> Tensor:
    """int8 `[B T + 1]`, 1 where a sequence begins, and at the end."""
    B, T = inputs.q.shape[:2]
    starts = torch.zeros(B * T + 1, dtype=torch.int8, device=inputs.q.device)
    if inputs.cu_seqlens is None:
        starts[::T] = 1
        return starts
    return starts.index_fill_(0, inputs.cu_seqlens.long(), 1)


class _OfFirst(NamedTuple):
    """Gradients of what the first tokens of sequences read of states that came in."""

    at: Tensor  # where they are [rows], any token for a sequence that has none
    k: Tensor  # of their keys [rows, Hk, K], then zeros
    S: Tensor


def _of_first(inputs: Inputs, dv: Tensor, options: power.Options) -> _OfFirst:
    """From the gradients of values, whose negatives are those of reads."""
    (B, T), cu_seqlens = inputs.q.shape[:2], inputs.cu_seqlens
    at, tokens = torch.arange(B, device=dv.device) * T, torch.ones(B, dtype=torch.bool, device=dv.device)
    if cu_seqlens is not None:
        at, tokens = cu_seqlens[:-1].clamp(max=T - 1).long(), cu_seqlens[1:] > cu_seqlens[:-1]
    k, do = (x.flatten(0, 1)[at][:, None] for x in (inputs.k, dv))
    do = torch.where(tokens[:, None, None, None], -do, 0)
    # As queries, with their gates, and as tokens that write nothing.
    log_g = None if inputs.log_g is None else inputs.log_g.flatten(0, 1)[at][:, None]
    alone = inputs._replace(q=k, k=torch.zeros_like(k), log_g=log_g, cu_seqlens=None)
    attention = _attention(alone, torch.zeros_like(do))
    found = _backward_of_reads(do, attention, _nothing_saved(attention), options)
    return _OfFirst(at, found.q[:, 0], found.S)


def backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Gradients of all inputs."""
    dtype, inputs = inputs.q.dtype, _as_read(inputs)
    do, beta, errors, empty = incoming.do.to(inputs.q.dtype), inputs.beta, saved.errors, or_empty(None, inputs.q)
    with unseen(inputs.q.device):
        of_outputs = _options(options, scale=options.scale, return_state=incoming.dS is not None)
        if beta is None:
            attention = _attention(inputs, inputs.v)
            found = _backward(do, incoming.dS, attention, _nothing_saved(attention), of_outputs)
            q, k, v = (x.to(dtype) for x in found[:3])
            return Gradients(q, k, v, found.log_g, empty, found.S)
        attention = _attention(inputs, scaled(errors, beta, do.dtype))
        kept = _saved(attention, of_outputs)
        found = _backward(do, incoming.dS, attention, kept, of_outputs)
        of_errors = _errors(*_backwards_in_time(inputs, found.v), options.p)[0]
        dv, dreads, dbeta, dlog_g = read_gradients(inputs, errors, of_errors, _starts(inputs))
        # Each token's state is read by the key of the next one.
        following = torch.cat((inputs.k[:, 1:], torch.zeros_like(inputs.k[:, :1])), 1)
        of_reads = _options(options, scale=1.0, return_state=False)
        others = _backward_of_reads(dreads, attention._replace(q=following), kept, of_reads)
        dk, S = add_key_gradients(found.k, others.k, others.q), empty
        if inputs.S is not None:
            first = _of_first(inputs, dv, of_reads)
            dk.flatten(0, 1).index_add_(0, first.at, first.k)
            S = found.S + others.S + first.S
    log_g = empty
    if inputs.log_g is not None:
        log_g = torch.where(inputs.log_g <= LOWEST_GATE, 0, found.log_g + others.log_g + dlog_g)
    return Gradients(found.q.to(dtype), dk.to(dtype), dv.to(dtype), log_g, dbeta.to(beta.dtype), S)
