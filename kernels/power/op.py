"""Power attention as torch.library ops: schema, fake, autograd, autocast and FLOP formula.

`zoo::power_attention` is one op on every device. On a GPU the compiler sees through it to the Triton kernels, and fuses
their preparation with what comes before; on a CPU it finds the chunked form inside as one opaque node, and what
surrounds that is traced and fused. The ops take arguments that `api.py` has checked and return plain tensors.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.compilation import in_backward_graph
from zoo.kernels.power import chunked
from zoo.kernels.power.call import (
    Gradients,
    Incoming,
    Inputs,
    Options,
    Outputs,
    Saved,
    Step,
    join_sequences,
    or_empty,
    take_sequence,
)
from zoo.kernels.power.expansion import state_size
from zoo.kernels.power.flops import backward_flops, forward_flops, step_flops
from zoo.kernels.power.heads import Heads
from zoo.kernels.power.reference import run_reference
from zoo.kernels.power.step import step_in_place
from zoo.kernels.precision import accumulation_dtype
from zoo.kernels.registration import count_flops, custom_op, flat, lower_under_autocast, triton_op, unflatten
from zoo.kernels.transforms import differentiable_gradients, differentiates_again
from zoo.kernels.triton_support import TRITON

if TRITON:
    from zoo.kernels.power.triton.op import fake_gradients, fake_saved, triton_backward, triton_forward
    from zoo.kernels.power.triton.step import supports_triton_step, triton_step

__all__ = ["attend", "fake_attend", "rounded", "step"]


@custom_op("power_attention_chunked")
def _chunked(inputs: Inputs, options: Options) -> Outputs:
    """The chunked form, opaque: its loops over chunks are not for tracing. o is not rounded."""
    if inputs.cu_seqlens is None:
        return chunked.forward(inputs, options)
    return join_sequences([chunked.forward(take_sequence(inputs, *at), options) for at in inputs.sequences()])


def _fake_chunked(inputs: Inputs, options: Options) -> Outputs:
    q, k, v, cu_seqlens = *inputs[:3], inputs.cu_seqlens
    heads, dtype = inputs.heads, accumulation_dtype(q.dtype)
    B, T, V = q.shape[0], q.shape[1], v.shape[3]
    D = state_size(k.shape[3], options.p, offset=inputs.offset is not None)
    rows = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shapes = (
        (B, T, heads.output) if options.normalize else (0,),
        (rows, heads.state, D, V) if options.return_state else (0,),
        (rows, heads.state, D) if options.return_state else (0,),
    )
    denominator, S, z = (q.new_empty(shape, dtype=dtype) for shape in shapes)
    o = v.new_empty(B, T, heads.output, V, dtype=dtype)
    return Outputs(o, denominator, S, z, *(or_empty(None, q) for _ in range(3)))


_chunked.register_fake(flat(_fake_chunked))


def rounded(outputs: Outputs, inputs: Inputs, options: Options) -> Outputs:
    """The same with o in the dtype of v, and as it is where that is asked for."""
    o = outputs.o.to(inputs.v.dtype)
    saves = options.save_output and outputs.o.dtype != o.dtype
    return outputs._replace(o=o, exact=outputs.o if saves else outputs.exact)


@triton_op("power_attention")
def attend(inputs: Inputs, options: Options) -> Outputs:
    """What the options ask for; o in the dtype of v."""
    if options.use_triton:
        return triton_forward(inputs, options)
    return rounded(Outputs(*_chunked(*inputs, *options)), inputs, options)


def fake_attend(inputs: Inputs, options: Options) -> Outputs:
    outputs = rounded(_fake_chunked(inputs, options), inputs, options)
    if not (options.use_triton and options.save_states):
        return outputs
    states, gates = fake_saved(inputs, options)
    return outputs._replace(states=states, gates=gates)


attend.register_fake(flat(fake_attend))


@custom_op("power_attention_chunked_backward")
def _chunked_backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    if inputs.cu_seqlens is None:
        return chunked.backward(incoming, inputs, saved, options)
    parts = []
    for at in inputs.sequences():
        one = take_sequence(incoming, *at), take_sequence(inputs, *at), take_sequence(saved, *at)
        parts.append(chunked.backward(*one, options))
    return join_sequences(parts)


def _fake_backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    shapes = (or_empty(None, inputs.q) if x is None else x for x in inputs[:-1])
    return Gradients(*(torch.empty_like(x, memory_format=torch.contiguous_format) for x in shapes))


@triton_op("power_attention_backward")
def _attend_backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    if options.use_triton:
        return triton_backward(incoming, inputs, saved, options)
    return Gradients(*_chunked_backward(*incoming, *inputs, *saved, *options))


_chunked_backward.register_fake(flat(_fake_backward))
_attend_backward.register_fake(flat(_fake_backward))


def _fake_backward_kernels(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Of the op that is opaque."""
    dq, dk, dv = fake_gradients(incoming, inputs, options)
    return _fake_backward(incoming, inputs, saved, options)._replace(q=dq, k=dk, v=dv)


if TRITON:
    torch.library.register_fake("zoo::power_attention_kernels", flat(fake_attend))
    torch.library.register_fake("zoo::power_attention_backward_kernels", flat(_fake_backward_kernels))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    (tensors, options), outputs = unflatten(inputs, Inputs, Options), Outputs(*output)
    ctx.save_for_backward(*tensors, *outputs.saved(options))
    ctx.options = options
    ctx.mark_non_differentiable(outputs.denominator, outputs.states, outputs.gates, outputs.exact)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    (do, _, dS, dz, *_), options = gradients, ctx.options
    inputs, saved = unflatten(ctx.saved_tensors, Inputs, Saved)
    v = inputs.v
    if dS is not None and dz is None:
        dz = dS.new_zeros(dS.shape[:-1])
    if dz is not None and dS is None:
        dS = dz.new_zeros(*dz.shape, v.shape[-1])
    if dS is not None and dS.numel() == 0:
        dS = dz = None
    if do is None:
        do = v.new_zeros(*v.shape[:2], inputs.heads.output, v.shape[3])
    if differentiates_again():
        tensors = [*inputs[:-1]]
        wanted = differentiable_gradients(partial(_plain, inputs.cu_seqlens, options), tensors, (do, dS, dz))
        return *wanted, None, *(None for _ in options)
    with in_backward_graph():
        found = _attend_backward(*Incoming(do, dS, dz), *inputs, *saved, *options)
    *tensors, _ = inputs
    wanted = [None if x is None else dx for x, dx in zip(tensors, found, strict=True)]
    return *wanted, None, *(None for _ in options)


def _plain(cu_seqlens: Tensor | None, options: Options, tensors: list[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """o and the last state by the quadratic form, which torch differentiates as often as wanted."""
    inputs = Inputs._make([*tensors, cu_seqlens])
    o, after = run_reference(inputs, "quadratic", p=options.p, scale=options.scale, normalize=options.normalize)
    return o, *after


attend.register_autograd(_differentiate, setup_context=_save)


@custom_op("power_attention_step", mutates=("S", "z"))
def step(step: Step) -> Tensor:
    """One token: o `[B, Ho, V]` in the dtype of v, with S and z updated in place."""
    return triton_step(step) if TRITON and supports_triton_step(step) else step_in_place(step)


def _fake_step(step: Step) -> Tensor:
    return step.v.new_empty(step.v.shape[0], step.heads.output, step.v.shape[2])


step.register_fake(flat(_fake_step))

lower_under_autocast("power_attention", attend)
lower_under_autocast("power_attention_step", step)


# FLOP formulas get shapes in tensors' places.
def _sizes(q: Any, k: Any, v: Any) -> tuple[Heads, int, int]:
    """Head counts, K and V."""
    return Heads(q[-2], k[-2], v[-2]), k[-1], v[-1]


@count_flops("power_attention")
def _(inputs: Inputs, options: Options) -> int:
    B, T, *_ = inputs.q
    with_state = options.return_state or inputs.S is not None
    return forward_flops(
        B, T, *_sizes(*inputs[:3]), options.p, options.chunk_size, with_state=with_state,
        offset=inputs.offset is not None,
    )  # fmt: skip


@count_flops("power_attention_backward")
def _(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> int:
    B, T, *_ = inputs.q
    with_state = incoming.dS is not None or inputs.S is not None
    return backward_flops(
        B, T, *_sizes(*inputs[:3]), options.p, options.chunk_size, with_state=with_state,
        offset=inputs.offset is not None,
    )  # fmt: skip


@count_flops("power_attention_step")
def _(step: Step) -> int:
    B, *_ = step.q
    return step_flops(B, *_sizes(*step[:3]), step.p, offset=step.offset is not None)
