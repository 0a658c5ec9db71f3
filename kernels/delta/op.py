"""The delta rule as torch.library ops: schema, fake, autograd, autocast and FLOP formula.

`zoo::delta_attention` and its backward are opaque to the compiler: a loop over chunks that is traced compiles once for
each number of chunks, and around Triton's kernels nothing is left to fuse. What surrounds the ops is traced and fused.
The ops take arguments that `api.py` has checked.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.compilation import in_backward_graph
from zoo.kernels.delta import chunked
from zoo.kernels.delta.call import Gradients, Incoming, Inputs, Options, Outputs, Saved, Step
from zoo.kernels.delta.flops import backward_flops, delta_flops, step_flops
from zoo.kernels.delta.reference import run_reference
from zoo.kernels.delta.step import step_in_place
from zoo.kernels.power.call import join_sequences, or_empty, take_sequence
from zoo.kernels.power.expansion import state_size
from zoo.kernels.precision import without_autocast
from zoo.kernels.registration import count_flops, custom_op, flat, lower_under_autocast, register_op, unflatten
from zoo.kernels.transforms import differentiable_gradients, differentiates_again
from zoo.kernels.triton_support import TRITON

if TRITON:
    from zoo.kernels.delta.triton.op import fake_saved, triton_backward, triton_forward

__all__ = ["attend", "step"]


def _attend(inputs: Inputs, options: Options) -> Outputs:
    if options.use_triton:  # autocast does not reach kernels, and to leave it takes as long as a few launches
        return triton_forward(inputs, options)
    with without_autocast(inputs.q):
        if inputs.cu_seqlens is None:
            return chunked.forward(inputs, options)
        return join_sequences([chunked.forward(take_sequence(inputs, *at), options) for at in inputs.sequences()])


def _fake(inputs: Inputs, options: Options) -> Outputs:
    q, k, v, dtype = inputs.q, inputs.k, inputs.v, inputs.accumulation
    state = (inputs.rows, v.shape[2], state_size(k.shape[3], options.p), v.shape[3])
    S = q.new_empty(state, dtype=dtype) if options.return_state else None
    found = Outputs(v.new_empty(v.shape), or_empty(S, q), *(or_empty(None, q) for _ in Saved._fields))
    if options.use_triton:
        return found._replace(**fake_saved(inputs, options)._asdict())
    saves = options.save_errors and inputs.beta is not None
    return found._replace(errors=v.new_empty(v.shape, dtype=dtype)) if saves else found


attend = register_op("delta_attention")(flat(_attend))
"""Output, and last state and what the backward pass needs where they are asked for."""
torch.library.register_fake("zoo::delta_attention", flat(_fake))


def _gradients(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    if options.use_triton:
        return triton_backward(incoming, inputs, saved, options)
    with without_autocast(inputs.q):
        if inputs.cu_seqlens is None:
            return chunked.backward(incoming, inputs, saved, options)
        return join_sequences(
            [
                chunked.backward(
                    take_sequence(incoming, *at), take_sequence(inputs, *at), take_sequence(saved, *at), options
                )
                for at in inputs.sequences()
            ]
        )


def _fake_backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    return Gradients._make(
        or_empty(None, inputs.q) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in inputs[:-1]
    )


_attend_backward = register_op("delta_attention_backward")(flat(_gradients))
torch.library.register_fake("zoo::delta_attention_backward", flat(_fake_backward))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    (tensors, options), outputs = unflatten(inputs, Inputs, Options), Outputs(*output)
    ctx.save_for_backward(*tensors, *outputs.saved)
    ctx.options = options
    ctx.mark_non_differentiable(*outputs.saved)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    (do, dS, *_), options = gradients, ctx.options
    inputs, saved = unflatten(ctx.saved_tensors, Inputs, Saved)
    if differentiates_again():
        wanted = differentiable_gradients(partial(_plain, inputs.cu_seqlens, options), [*inputs[:-1]], (do, dS))
        return *wanted, None, *(None for _ in options)
    incoming = Incoming(torch.zeros_like(inputs.v) if do is None else do, dS if options.return_state else None)
    with in_backward_graph():
        found = _attend_backward(*incoming, *inputs, *saved, *options)
    *tensors, _ = inputs
    wanted = [None if x is None else dx for x, dx in zip(tensors, found, strict=True)]
    return *wanted, None, *(None for _ in options)


def _plain(cu_seqlens: Tensor | None, options: Options, tensors: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """o and the last state by the recurrence, which torch differentiates as often as wanted."""
    o, S, *_ = run_reference(Inputs._make([*tensors, cu_seqlens]), options)
    return o, S


torch.library.register_autograd("zoo::delta_attention", _differentiate, setup_context=_save)


@custom_op("delta_attention_step", mutates=("S",))
def step(call: Step) -> Tensor:
    """One token: o `[B, Hv, V]`, with S updated in place."""
    with without_autocast(call.q):
        return step_in_place(call)


def _fake_step(call: Step) -> Tensor:
    return call.v.new_empty(call.v.shape)


step.register_fake(flat(_fake_step))

lower_under_autocast("delta_attention", attend)
lower_under_autocast("delta_attention_step", step)


# FLOP formulas get shapes in tensors' places.
def _sizes(k: Any, v: Any) -> Any:
    """B, T if there are tokens, heads, K and V."""
    return *v[:-1], k[-1], v[-1]


@count_flops("delta_attention")
def _(inputs: Inputs, options: Options) -> int:
    with_state = options.return_state or inputs.S is not None
    sizes = (*_sizes(inputs.k, inputs.v), options.p, options.chunk_size)
    return delta_flops(*sizes, corrects=inputs.beta is not None, with_state=with_state)


@count_flops("delta_attention_backward")
def _(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> int:
    with_state = incoming.dS is not None or inputs.S is not None
    sizes = (*_sizes(inputs.k, inputs.v), options.p, options.chunk_size)
    return backward_flops(*sizes, corrects=inputs.beta is not None, with_state=with_state)


@count_flops("delta_attention_step")
def _(call: Step) -> int:
    sizes = (*_sizes(call.k, call.v), call.p)
    return step_flops(*sizes, corrects=call.beta is not None)
