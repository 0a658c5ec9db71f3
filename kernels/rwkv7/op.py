"""RWKV-7's time mixing as torch.library ops: schema, fake, autograd and FLOP formula.

`zoo::rwkv7` and its backward are opaque to the compiler, since a loop over chunks that is traced compiles once for each
number of chunks; what surrounds them is traced and fused. They run in PyTorch (`chunked.py`) or launch Triton's kernels
(`triton/`), which differ in what they keep for the backward pass. The ops take arguments that `api.py` has checked and
return plain tensors. Autocast changes nothing: inputs come in the dtype that the caller wants, and sums are float32
whatever it says.
"""

from typing import Any

import torch
from torch import Tensor

from zoo.kernels.compilation import in_backward_graph
from zoo.kernels.precision import accumulation_dtype, without_autocast
from zoo.kernels.registration import count_flops, custom_op, flat, unflatten
from zoo.kernels.rwkv7 import chunked
from zoo.kernels.rwkv7.call import Incoming, Mixed, MixedGradients, Options, Saved, Tokens, nothing_kept
from zoo.kernels.rwkv7.flops import backward_flops, rwkv7_flops, step_flops
from zoo.kernels.rwkv7.reference import recurrent
from zoo.kernels.rwkv7.step import step_in_place
from zoo.kernels.transforms import differentiable_gradients, differentiates_again
from zoo.kernels.triton_support import TRITON

if TRITON:
    from zoo.kernels.rwkv7.triton.op import fake_forward, triton_backward, triton_forward

__all__ = ["mix", "step"]


@custom_op("rwkv7")
def mix(tokens: Tokens, S: Tensor | None, options: Options) -> Mixed:
    """The tokens' output from the state S `[B, H, N, N]`, or an empty one."""
    with without_autocast(tokens.r):
        if options.use_triton:
            return triton_forward(tokens, S, options)
        return chunked.forward(tokens, S, options.chunk_size)


def _fake(tokens: Tokens, S: Tensor | None, options: Options) -> Mixed:
    if options.use_triton:
        return fake_forward(tokens, options)
    r, v = tokens.r, tokens.v
    B, T, H, N = r.shape
    dtype, count = accumulation_dtype(r.dtype), chunked.saved_states(T, options.chunk_size, r.device)
    state, states = r.new_empty(B, H, N, N, dtype=dtype), r.new_empty(count, B, H, N, N, dtype=dtype)
    return Mixed(v.new_empty(B, T, H, N), state, states, *nothing_kept(r))


mix.register_fake(flat(_fake))


@custom_op("rwkv7_backward")
def _mix_backward(incoming: Incoming, tokens: Tokens, saved: Saved, options: Options) -> MixedGradients:
    with without_autocast(tokens.r):
        if options.use_triton:
            return triton_backward(incoming, tokens, saved, options)
        return chunked.backward(incoming, tokens, saved, options.chunk_size)


def _fake_backward(incoming: Incoming, tokens: Tokens, saved: Saved, options: Options) -> MixedGradients:
    r, S = tokens.r, saved.S
    dS = r.new_empty((0,) if S is None else S.shape, dtype=accumulation_dtype(r.dtype))
    return MixedGradients._make((*(x.new_empty(x.shape) for x in tokens), dS))


_mix_backward.register_fake(flat(_fake_backward))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens, S, options = unflatten(inputs, Tokens, Tensor, Options)
    _, _, *kept = output
    ctx.save_for_backward(*tokens, S, *kept)
    ctx.options = options
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: Tensor | None, dS: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    (tokens, saved), options = unflatten(ctx.saved_tensors, Tokens, Saved), ctx.options
    if differentiates_again():
        return *differentiable_gradients(_plain, [*tokens, saved.S], (do, dS)), *(None for _ in options)
    incoming = Incoming(torch.zeros_like(tokens.v) if do is None else do, dS)
    with in_backward_graph():
        *gradients, dS_in = _mix_backward(*incoming, *tokens, *saved, *options)
    return *gradients, None if saved.S is None else dS_in, *(None for _ in options)


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
