"""RWKV-7's time mixing as torch.library ops: schema, fake, autograd and FLOP formula.

`zoo::rwkv7` and its backward are opaque to the compiler, since a loop over chunks that is traced compiles once for each
number of chunks; what surrounds them is traced and fused. They run in PyTorch (`chunked.py`) or by the kernels of
fla-core (`fla.py`), which differ in the states that they keep for the backward pass. The ops take arguments that
`api.py` has checked and return plain tensors; a schema cannot return None, so absent ones are empty. Autocast changes
nothing: inputs come in the dtype that the caller wants, and sums are float32 whatever it says.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo.kernels.precision import accumulation_dtype, without_autocast
from zoo.kernels.rwkv7 import chunked, fla
from zoo.kernels.rwkv7.flops import backward_flops, rwkv7_flops, step_flops
from zoo.kernels.rwkv7.step import step_in_place

__all__ = ["mix", "step"]


def _implementation(use_fla: bool) -> ModuleType:
    return fla if use_fla else chunked


@torch.library.custom_op("zoo::rwkv7", mutates_args=())
def mix(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    a: Tensor,
    S: Tensor | None,
    chunk_size: int,
    use_fla: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """o `[B, T, H, N]` in the dtype of v, the last state, and the states that the backward pass needs."""
    with without_autocast(r):
        return _implementation(use_fla).forward(r, log_w, k, v, kappa, a, S, chunk_size)


@mix.register_fake
def _(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    a: Tensor,
    S: Tensor | None,
    chunk_size: int,
    use_fla: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, N = r.shape
    dtype, count = accumulation_dtype(r.dtype), _implementation(use_fla).saved_states(T, chunk_size, r.device)
    state = r.new_empty(B, H, N, N, dtype=dtype)
    return v.new_empty(B, T, H, N), state, r.new_empty(count, B, H, N, N, dtype=dtype)


@torch.library.custom_op("zoo::rwkv7_backward", mutates_args=())
def _mix_backward(
    do: Tensor, dS: Tensor | None,
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, states: Tensor,
    chunk_size: int, use_fla: bool, has_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of r, log_w, k, v, kappa, a and of the incoming state, empty where there was none."""
    with without_autocast(r):
        *gradients, dS_in = _implementation(use_fla).backward(
            do, dS, r, log_w, k, v, kappa, a, states, chunk_size, has_state=has_state
        )
    dr, dlog_w, dk, dv, dkappa, da = gradients
    return dr, dlog_w, dk, dv, dkappa, da, states.new_empty(0) if dS_in is None else dS_in


@_mix_backward.register_fake
def _(
    do: Tensor, dS: Tensor | None,
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, states: Tensor,
    chunk_size: int, use_fla: bool, has_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dr, dlog_w, dk, dv, dkappa, da = (x.new_empty(x.shape) for x in (r, log_w, k, v, kappa, a))
    return dr, dlog_w, dk, dv, dkappa, da, states.new_empty(states.shape[1:] if has_state else (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, S, chunk_size, use_fla = inputs
    _o, _state, states = output
    ctx.save_for_backward(*tensors, states)
    ctx.options = (chunk_size, use_fla, S is not None)
    ctx.mark_non_differentiable(states)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: Tensor | None, dS: Tensor | None, _states: Tensor | None) -> tuple[Tensor | None, ...]:
    r, log_w, k, v, kappa, a, states = ctx.saved_tensors
    chunk_size, use_fla, has_state = ctx.options
    if do is None and use_fla:  # what comes in through the last state alone errs twice as much by fla-core's kernels
        chunk_size, use_fla = 0, False
        states = mix(r, log_w, k, v, kappa, a, states[0] if has_state else None, chunk_size, use_fla)[2]
    do = torch.zeros_like(v) if do is None else do
    *gradients, dS_in = _mix_backward(do, dS, r, log_w, k, v, kappa, a, states, chunk_size, use_fla, has_state)
    return *gradients, dS_in if has_state else None, None, None


mix.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("zoo::rwkv7_step", mutates_args=("state",))
def step(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, state: Tensor) -> Tensor:
    """One token: o `[B, H, N]`, with the state `[B, H, N, N]` updated in place."""
    with without_autocast(r):
        return step_in_place(r, log_w, k, v, kappa, a, state)


@step.register_fake
def _(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, state: Tensor) -> Tensor:
    return v.new_empty(v.shape)


@register_flop_formula(torch.ops.zoo.rwkv7)
def _(
    r: Any, log_w: Any, k: Any, v: Any, kappa: Any, a: Any, S: Any, chunk_size: int, use_fla: bool, *,
    out_shape: Any = None, **_: Any,
) -> int:  # fmt: skip
    batch, tokens, heads, width = r
    return rwkv7_flops(batch, tokens, heads, width, chunk_size)


@register_flop_formula(torch.ops.zoo.rwkv7_backward)
def _(
    do: Any, dS: Any, r: Any, log_w: Any, k: Any, v: Any, kappa: Any, a: Any, states: Any, chunk_size: int,
    use_fla: bool, has_state: bool, *, out_shape: Any = None, **_: Any,
) -> int:  # fmt: skip
    batch, tokens, heads, width = r
    return backward_flops(batch, tokens, heads, width, chunk_size)


@register_flop_formula(torch.ops.zoo.rwkv7_step)
def _(r: Any, log_w: Any, k: Any, v: Any, kappa: Any, a: Any, state: Any, *, out_shape: Any = None, **_: Any) -> int:
    batch, heads, width = r
    return step_flops(batch, heads, width)
