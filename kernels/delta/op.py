"""The delta rule as torch.library ops: schema, fake, autograd, autocast and FLOP formula.

`zoo::delta_attention` and its backward are opaque to the compiler, since a loop over chunks that is traced compiles
once for each number of chunks; what surrounds them is traced and fused. The ops take arguments that `api.py` has
checked.
"""

from typing import Any

import torch
from torch import Tensor

from zoo.kernels.compilation import in_backward_graph
from zoo.kernels.delta import chunked
from zoo.kernels.delta.call import (
    Gradients,
    Incoming,
    Inputs,
    Options,
    Outputs,
    Step,
    join_sequences,
    or_empty,
    take_sequence,
)
from zoo.kernels.delta.flops import backward_flops, delta_flops, step_flops
from zoo.kernels.delta.step import step_in_place
from zoo.kernels.power.expansion import state_size
from zoo.kernels.precision import cast_for_autocast, without_autocast
from zoo.kernels.registration import count_flops, custom_op, unflatten

__all__ = ["attend", "step"]


@custom_op("delta_attention")
def attend(inputs: Inputs, options: Options) -> Outputs:
    """Output, last state and errors, the latter two where they are asked for."""
    with without_autocast(inputs.q):
        if inputs.cu_seqlens is None:
            return chunked.forward(inputs, options)
        parts = (take_sequence(inputs._replace(cu_seqlens=None), *at) for at in inputs.sequences())
        return join_sequences([chunked.forward(part, options) for part in parts])


@attend.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, options = unflatten(arguments, Inputs, Options)
    q, k, v, dtype = inputs.q, inputs.k, inputs.v, inputs.accumulation
    state = (inputs.rows, v.shape[2], state_size(k.shape[3], options.p), v.shape[3])
    S = q.new_empty(state, dtype=dtype) if options.return_state else None
    errors = v.new_empty(v.shape, dtype=dtype) if options.save_errors and inputs.beta is not None else None
    return v.new_empty(v.shape), or_empty(S, q), or_empty(errors, q)


@custom_op("delta_attention_backward")
def _attend_backward(incoming: Incoming, inputs: Inputs, errors: Tensor, options: Options) -> Gradients:
    """Gradients of the inputs; `errors` are those of the forward pass."""
    with without_autocast(inputs.q):
        if inputs.cu_seqlens is None:
            return chunked.backward(incoming, inputs, errors, options)
        parts = [
            chunked.backward(
                take_sequence(incoming, *at),
                take_sequence(inputs._replace(cu_seqlens=None), *at),
                errors if inputs.beta is None else errors[:, at[1]],
                options,
            )
            for at in inputs.sequences()
        ]
        return join_sequences(parts)


@_attend_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    _, inputs, _, _ = unflatten(arguments, Incoming, Inputs, Tensor, Options)
    return tuple(
        or_empty(None, inputs.q) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in inputs[:-1]
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call, ctx.options = unflatten(inputs, Inputs, Options)
    _o, _S, errors = output
    ctx.save_for_backward(*call, errors)
    ctx.mark_non_differentiable(errors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: Tensor | None, dS: Tensor | None, _errors: Tensor | None) -> tuple[Any, ...]:
    *tensors, errors = ctx.saved_tensors
    inputs = Inputs(*tensors)
    do = torch.zeros_like(inputs.v) if do is None else do
    dS = dS if ctx.options.return_state else None
    with in_backward_graph():
        found = _attend_backward(do, dS, *inputs, errors, *ctx.options)
    gradients = (None if x is None else dx for x, dx in zip(inputs[:-1], found, strict=True))
    return *gradients, *(None,) * (1 + len(ctx.options))


attend.register_autograd(_differentiate, setup_context=_save)


@custom_op("delta_attention_step", mutates=("S",))
def step(call: Step) -> Tensor:
    """One token: o `[B, Hv, V]`, with S updated in place."""
    with without_autocast(call.q):
        return step_in_place(call)


@step.register_fake
def _(*arguments: Any) -> Tensor:
    v = Step(*arguments).v
    return v.new_empty(v.shape)


# Autocast lowers q, k and v; gates, rates and states stay as they are, which `register_autocast` cannot express.
_library = torch.library.Library("zoo", "FRAGMENT")


def _with_autocast(op: Any, device_type: str) -> Any:
    def cast(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
        lowered = cast_for_autocast(q, k, v)
        with torch.autocast(device_type, enabled=False):
            return op(*lowered, *rest)

    return cast


for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    _library.impl("delta_attention", _with_autocast(attend, _device), _key)
    _library.impl("delta_attention_step", _with_autocast(step, _device), _key)


def _sizes(k: Any, v: Any) -> Any:
    """B, T if there are tokens, heads, K and V from the shapes that a FLOP formula gets."""
    return *v[:-1], k[-1], v[-1]


@count_flops("delta_attention")
def _(inputs: Inputs, options: Options) -> int:
    with_state = options.return_state or inputs.S is not None
    sizes = (*_sizes(inputs.k, inputs.v), options.p, options.chunk_size)
    return delta_flops(*sizes, corrects=inputs.beta is not None, with_state=with_state)


@count_flops("delta_attention_backward")
def _(incoming: Incoming, inputs: Inputs, errors: Tensor, options: Options) -> int:
    with_state = incoming.dS is not None or inputs.S is not None
    sizes = (*_sizes(inputs.k, inputs.v), options.p, options.chunk_size)
    return backward_flops(*sizes, corrects=inputs.beta is not None, with_state=with_state)


@count_flops("delta_attention_step")
def _(call: Step) -> int:
    sizes = (*_sizes(call.k, call.v), call.p)
    return step_flops(*sizes, corrects=call.beta is not None)
