"""Power attention over a sequence of which every process has a share (`zoo.kernels.sequence`), at the work of one call.

A share is affine in the state before it, and so the call is cut where states are passed on from chunk to chunk: what
chunks add to the state is summed (`sums`), processes exchange their shares' states, and outputs are made with the state
that comes in. The backward pass is cut at the same place: what queries give to the state's gradient (`gradient_sums`),
the exchange from the other end, and all gradients. No product is made twice. The four halves are ops of
`torch.library`, and the exchange between them is traced.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.kernels.compilation import in_backward_graph
from zoo.kernels.power import chunked
from zoo.kernels.power.call import Gradients, Incoming, Inputs, Options, Outputs, Saved, or_empty
from zoo.kernels.power.expansion import state_size
from zoo.kernels.power.flops import half_flops
from zoo.kernels.power.heads import Heads, spread_heads
from zoo.kernels.power.op import fake_attend, rounded
from zoo.kernels.power.state import PowerState
from zoo.kernels.precision import accumulation_dtype
from zoo.kernels.registration import count_flops, custom_op, flat
from zoo.kernels.sequence import SequenceGroup, at_the_end, at_the_start, states_after, states_before
from zoo.kernels.triton_support import INTERPRETED, TRITON

if TRITON:
    from zoo.kernels.launch import unseen
    from zoo.kernels.power.triton.context import (
        share_gradient_sums,
        share_gradients,
        share_outputs,
        share_sums,
        sums_shape,
    )

__all__ = ["attend_over"]


class Sums(NamedTuple):
    """What a share's chunks add to a state, or to its gradient."""

    chunks: Tensor  # each by itself, in a layout of their own
    S: Tensor  # all of them, as in `PowerState`
    z: Tensor


def attend_over(inputs: Inputs, options: Options, group: SequenceGroup) -> tuple[Tensor, PowerState | None]:
    """Return o `[B, T, Ho, V]` of this process's share of the tokens, which sees all that stand before it, and the
    state after all shares, if it is asked for.

    inputs: with the state before the first share, and not packed.
    """
    if inputs.S is not None and inputs.z is not None:
        inputs = inputs._replace(S=at_the_start(inputs.S, group), z=at_the_start(inputs.z, group))
    o, *after = _Attend.apply(options._replace(return_state=False), group, options.return_state, *inputs[:7])
    return o, PowerState(*(at_the_end(x, group) for x in after)) if options.return_state else None


def _kernels(device: torch.device) -> AbstractContextManager[None]:
    """Where kernels are launched there and then, as the compiler does not look into the ops here."""
    return nullcontext() if INTERPRETED else unseen(device)


@custom_op("power_attention_sums")
def _sums(inputs: Inputs, options: Options) -> Sums:
    if not options.use_triton:
        return Sums(*chunked.chunk_sums(inputs, options))
    with _kernels(inputs.q.device):
        return Sums(*share_sums(inputs, options))


@custom_op("power_attention_outputs")
def _outputs(inputs: Inputs, chunks: Tensor, options: Options) -> Outputs:
    if not options.use_triton:
        return rounded(chunked.forward(inputs, options, chunks), inputs, options)
    with _kernels(inputs.q.device):
        return share_outputs(inputs, chunks, options)


@custom_op("power_attention_gradient_sums")
def _gradient_sums(do: Tensor, inputs: Inputs, saved: Saved, options: Options) -> Sums:
    if not options.use_triton:
        return Sums(*chunked.chunk_gradient_sums(do, inputs, saved, options))
    with _kernels(inputs.q.device):
        return Sums(*share_gradient_sums(do, inputs, saved, options))


@custom_op("power_attention_share_gradients")
def _gradients(incoming: Incoming, inputs: Inputs, saved: Saved, chunks: Tensor, options: Options) -> Gradients:
    if not options.use_triton:
        return chunked.backward(incoming, inputs, saved, options, chunks)
    with _kernels(inputs.q.device):
        return share_gradients(incoming, inputs, saved, chunks, options)


def _fake_sums(inputs: Inputs, options: Options) -> Sums:
    (q, _, v, *_), heads = inputs, inputs.heads
    D = state_size(q.shape[-1], options.p, offset=inputs.offset is not None)
    state, chunks = (q.shape[0], heads.state, D), (sums_shape if options.use_triton else chunked.sums_shape)
    shapes = chunks(inputs, options), (*state, v.shape[-1]), state
    return Sums(*(q.new_empty(shape, dtype=accumulation_dtype(q.dtype)) for shape in shapes))


def _fake_outputs(inputs: Inputs, chunks: Tensor, options: Options) -> Outputs:
    outputs = fake_attend(inputs, options)
    return outputs._replace(gates=or_empty(None, outputs.o))


def _fake_gradient_sums(do: Tensor, inputs: Inputs, saved: Saved, options: Options) -> Sums:
    return _fake_sums(inputs, options)


def _fake_gradients(incoming: Incoming, inputs: Inputs, saved: Saved, chunks: Tensor, options: Options) -> Gradients:
    q, k, v, log_g, _, _, offset, _ = inputs
    found = (None if x is None else x.new_empty(x.shape) for x in (q, k, v, log_g, None, None, offset))
    return Gradients(*(or_empty(x, q) for x in found))


for _op, _fake in (
    (_sums, _fake_sums),
    (_outputs, _fake_outputs),
    (_gradient_sums, _fake_gradient_sums),
    (_gradients, _fake_gradients),
):
    _op.register_fake(flat(_fake))


class _Attend(torch.autograd.Function):
    """The halves and what is sent between them.

    Of a state the halves know only what comes in; what the first share starts with, and what is wanted after a share,
    are added here. A share makes `decay S + sums` of a state S before it, and of the gradient after it likewise.
    """

    @staticmethod
    def forward(
        ctx: Any, options: Options, group: SequenceGroup, return_state: bool, *tensors: Any
    ) -> tuple[Tensor, ...]:
        given = Inputs(*tensors)
        inputs, first = given._replace(S=None, z=None), None if given.S is None else (given.S, given.z)
        log_decays = _log_decays(inputs)
        chunks, *sums = _sums(*inputs, *options)
        before = _plus(_exchange(states_before, _through(sums, first, log_decays), log_decays, group), first)
        outputs = Outputs(*_outputs(*inputs._replace(S=before[0], z=before[1]), chunks, *options))
        ctx.save_for_backward(*inputs, *before, *outputs.saved(options))
        ctx.options, ctx.group, ctx.has_first = options, group, first is not None
        return (outputs.o, *_through(sums, before, log_decays)) if return_state else (outputs.o,)

    @staticmethod
    def backward(ctx: Any, do: Tensor, *dafter: Tensor) -> Any:
        *tensors, S, z, o, denominator, states, gates = ctx.saved_tensors
        options, group, saved = ctx.options, ctx.group, (o, denominator, states, gates)
        inputs, own, dfirst = Inputs(*tensors), dafter or None, (None, None)
        log_decays = _log_decays(inputs)
        with in_backward_graph():
            do = do.contiguous()
            chunks, *sums = _gradient_sums(do, *inputs, *saved, *options)
            after = _plus(_exchange(states_after, _through(sums, own, log_decays), log_decays, group), own)
            found = _gradients(do, *after, *inputs._replace(S=S, z=z), *saved, chunks, *options)
            if ctx.has_first:
                dfirst = _through(sums, after, log_decays)
        dq, dk, dv, dlog_g, _, _, doffset = found
        dlog_g, doffset = (None if x is None else dx for x, dx in ((inputs.log_g, dlog_g), (inputs.offset, doffset)))
        return None, None, None, dq, dk, dv, dlog_g, *dfirst, doffset


def _log_decays(inputs: Inputs) -> Tensor | None:
    """Of this share, `[B, Hs]`; None: there are no gates."""
    if inputs.log_g is None:
        return None
    return spread_heads(inputs.log_g.sum(1, dtype=torch.float64), inputs.heads.state, 1)


def _through(sums: Any, state: Any, log_decays: Tensor | None) -> Any:
    """What a share with these sums makes of S and z, or of their gradients from the other end; None: of zeros."""
    if state is None:
        return sums
    if log_decays is None:
        return _plus(sums, state)
    decay = log_decays.exp()
    return [
        x + decay.view(*decay.shape, *[1] * (x.dim() - 2)).to(x.dtype) * y for x, y in zip(sums, state, strict=True)
    ]


def _plus(one: Any, other: Any) -> Any:
    """Sums of S and z; None: of zeros."""
    return one if other is None else [x + y for x, y in zip(one, other, strict=True)]


def _exchange(passed: Any, state: Any, log_decays: Tensor | None, group: SequenceGroup) -> tuple[Tensor, Tensor]:
    """S and z, or their gradients, as other shares leave them to this one."""
    S, z = state
    joined = passed(torch.cat((S, z[..., None]), -1).flatten(2), log_decays, group).unflatten(2, (S.shape[2], -1))
    return joined[..., :-1].contiguous(), joined[..., -1].contiguous()


# FLOP formulas get shapes in tensors' places.
def _half(inputs: Inputs, options: Options) -> tuple[int, int]:
    (B, T, Hq, K), (_, _, Hk, _), (_, _, Hv, V) = inputs[:3]
    heads, offset = Heads(Hq, Hk, Hv), inputs.offset is not None
    return half_flops(B, T, heads, K, V, options.p, options.chunk_size, offset=offset)


@count_flops("power_attention_sums")
def _(inputs: Inputs, options: Options) -> int:
    return _half(inputs, options)[0]


@count_flops("power_attention_outputs")
def _(inputs: Inputs, chunks: Tensor, options: Options) -> int:
    return _half(inputs, options)[1]


@count_flops("power_attention_gradient_sums")
def _(do: Tensor, inputs: Inputs, saved: Saved, options: Options) -> int:
    return _half(inputs, options)[0]


@count_flops("power_attention_share_gradients")
def _(incoming: Incoming, inputs: Inputs, saved: Saved, chunks: Tensor, options: Options) -> int:
    sums, outputs = _half(inputs, options)
    return sums + 2 * outputs
