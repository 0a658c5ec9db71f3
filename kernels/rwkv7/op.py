"""RWKV-7's time mixing as torch.library ops: schema, fake, autograd and FLOP formula.

`zoo::rwkv7` and its backward are opaque to the compiler, since a loop over chunks that is traced compiles once for each
number of chunks; what surrounds them is traced and fused. They run in PyTorch (`chunked.py`) or by the kernels of
fla-core (`fla.py`), which differ in the states that they keep for the backward pass. The ops take arguments that
`api.py` has checked and return plain tensors. Autocast changes nothing: inputs come in the dtype that the caller wants,
and sums are float32 whatever it says.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.precision import accumulation_dtype, without_autocast
from zoo.kernels.registration import count_flops, custom_op, flat, unflatten
from zoo.kernels.rwkv7 import chunked, fla
from zoo.kernels.rwkv7.call import Incoming, Mixed, MixedGradients, Options, Saved, Tokens
from zoo.kernels.rwkv7.flops import backward_flops, rwkv7_flops, step_flops
from zoo.kernels.rwkv7.reference import recurrent
from zoo.kernels.rwkv7.step import step_in_place
from zoo.kernels.transforms import differentiable_gradients, differentiates_again

__all__ = ["mix", "step"]


def _implementation(options: Options) -> ModuleType:
    return fla if options.use_fla else chunked


@custom_op("rwkv7")
def mix(tokens: Tokens, S: Tensor | None, options: Options) -> Mixed:
    """The tokens' output from the state S `[B, H, N, N]`, or an empty one."""
    with without_autocast(tokens.r):
        return _implementation(options).forward(tokens, S, options.chunk_size)


def _fake(tokens: Tokens, S: Tensor | None, options: Options) -> Mixed:
    r, v = tokens.r, tokens.v
    B, T, H, N = r.shape
    dtype, count = accumulation_dtype(r.dtype), _implementation(options).saved_states(T, options.chunk_size, r.device)
    state = r.new_empty(B, H, N, N, dtype=dtype)
    return Mixed(v.new_empty(B, T, H, N), state, r.new_empty(count, B, H, N, N, dtype=dtype))


mix.register_fake(flat(_fake))


@custom_op("rwkv7_backward")
def _mix_backward(incoming: Incoming, tokens: Tokens, saved: Saved, options: Options) -> MixedGradients:
    with without_autocast(tokens.r):
        return _implementation(options).backward(incoming, tokens, saved, options.chunk_size)


def _fake_backward(incoming: Incoming, tokens: Tokens, saved: Saved, options: Options) -> MixedGradients:
    states = saved.states
    S = states.new_empty(states.shape[1:] if saved.has_state else (0,))
    return MixedGradients._make((*(x.new_empty(x.shape) for x in tokens), S))


_mix_backward.register_fake(flat(_fake_backward))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens, S, options = unflatten(inputs, Tokens, Tensor, Options)
    states = Mixed(*output).states
    ctx.save_for_backward(*tokens, S, states)
    ctx.has_state, ctx.options = S is not None, options
    ctx.mark_non_differentiable(states)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: Tensor | None, dS: Tensor | None, _states: Tensor | None) -> tuple[Tensor | None, ...]:
    tokens, S, states = unflatten(ctx.saved_tensors, Tokens, Tensor, Tensor)
    has_state, options = ctx.has_state, ctx.options
    if differentiates_again():
        return *differentiable_gradients(_plain, [*tokens, S], (do, dS)), *(None for _ in options)
    if do is None and options.use_fla:  # what comes in by the last state alone errs twice as much by fla-core's kernels
        options = Options(use_fla=False, chunk_size=0)
        states = Mixed(*mix(*tokens, states[0] if has_state else None, *options)).states
    incoming = Incoming(torch.zeros_like(tokens.v) if do is None else do, dS)
    *gradients, dS_in = _mix_backward(*incoming, *tokens, *Saved(states, has_state), *options)
    return *gradients, dS_in if has_state else None, *(None for _ in options)


def _plain(tensors: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """o and the last state by the recurrence, which torch differentiates as often as wanted."""
    (r, log_w, k, v, kappa, a), S = unflatten(tensors, Tokens, Tensor)
    with without_autocast(r):
        return recurrent(r, log_w, k, v, kappa, a, S)


mix.register_autograd(_differentiate, setup_context=_save)


@custom_op("rwkv7_step", mutates=("state",))
def step(tokens: Tokens, state: Tensor) -> Tensor:
    """One token: o `[B, H, N]`, with the state `[B, H, N, N]` updated in place."""
    with without_autocast(tokens.r):
        return step_in_place(*tokens, state)


def _fake_step(tokens: Tokens, state: Tensor) -> Tensor:
    return tokens.v.new_empty(tokens.v.shape)


step.register_fake(flat(_fake_step))


# FLOP formulas get shapes in tensors' places.
@count_flops("rwkv7")
def _(tokens: Tokens, S: Tensor | None, options: Options) -> int:
    B, T, H, N = tokens.r
    return rwkv7_flops(B, T, H, N, options.chunk_size)


@count_flops("rwkv7_backward")
def _(incoming: Incoming, tokens: Tokens, saved: Saved, options: Options) -> int:
    B, T, H, N = tokens.r
    return backward_flops(B, T, H, N, options.chunk_size)


@count_flops("rwkv7_step")
def _(tokens: Tokens, state: Tensor) -> int:
    B, H, N = tokens.r
    return step_flops(B, H, N)
