"""Power attention as torch.library ops: schema, fake, autograd, autocast and FLOP formula.

`zoo::power_attention` is one op on every device. On a GPU the compiler sees through it to the Triton kernels, and fuses
their preparation with what comes before; on a CPU it finds the chunked form inside as one opaque node, and what
surrounds that is traced and fused. The ops take arguments that `api.py` has checked and return plain tensors; a schema
cannot return None, so absent ones are empty.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo.kernels.compilation import in_backward_graph
from zoo.kernels.power import chunked
from zoo.kernels.power.expansion import state_size
from zoo.kernels.power.flops import backward_flops, forward_flops, step_flops
from zoo.kernels.power.heads import Heads, separate_gradients
from zoo.kernels.power.step import step_in_place
from zoo.kernels.precision import accumulation_dtype, cast_for_autocast
from zoo.kernels.triton_support import TRITON, triton_op

if TRITON:
    from zoo.kernels.power.triton.op import saved_gates_shape, saved_states_shape, triton_backward, triton_forward
    from zoo.kernels.power.triton.step import supports_triton_step, triton_step

__all__ = ["attend", "step"]


def _sequences(cu_seqlens: Tensor) -> Iterator[tuple[slice, slice]]:
    """For each packed sequence, its row of the state and its tokens."""
    ends = cu_seqlens.tolist()
    return ((slice(i, i + 1), slice(ends[i], ends[i + 1])) for i in range(len(ends) - 1))


def _tokens(at: slice, *tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x[:, at] for x in tensors]


def _rows(at: slice, *tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x[at] for x in tensors]


def _or_empty(x: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=accumulation_dtype(like.dtype)) if x is None else x


@torch.library.custom_op("zoo::power_attention_chunked", mutates_args=())
def _chunked(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    cu_seqlens: Tensor | None, p: int, scale: float, normalize: bool, chunk_size: int, return_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The chunked form, opaque: its loops over chunks are not for tracing. Returns all but states of `attend`."""

    def run(*inputs: Any) -> tuple[Tensor, ...]:
        results = chunked.forward(
            *inputs, p=p, scale=scale, normalize=normalize, chunk_size=chunk_size, return_state=return_state
        )
        return tuple(_or_empty(x, q) for x in results)

    if cu_seqlens is None:
        parts = [run(q, k, v, log_g, S, z)]
    else:
        parts = [run(*_tokens(at, q, k, v, log_g), *_rows(row, S, z)) for row, at in _sequences(cu_seqlens)]
    o, denominator, S_out, z_out = zip(*parts, strict=True)
    return _join(o, 1), _join(denominator, 1 if normalize else 0), _join(S_out, 0), _join(z_out, 0)


@_chunked.register_fake
def _fake(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    cu_seqlens: Tensor | None, p: int, scale: float, normalize: bool, chunk_size: int, return_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    heads, dtype = Heads(q.shape[2], k.shape[2], v.shape[2]), accumulation_dtype(q.dtype)
    B, T, V, D = q.shape[0], q.shape[1], v.shape[3], state_size(k.shape[3], p)
    rows = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shapes = (
        (B, T, heads.output) if normalize else (0,),
        (rows, heads.state, D, V) if return_state else (0,),
        (rows, heads.state, D) if return_state else (0,),
    )
    denominator, S_out, z_out = (q.new_empty(shape, dtype=dtype) for shape in shapes)
    return v.new_empty(B, T, heads.output, V, dtype=dtype), denominator, S_out, z_out


@triton_op("zoo::power_attention")
def attend(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    cu_seqlens: Tensor | None, p: int, scale: float, normalize: bool, chunk_size: int, return_state: bool,
    save_states: bool, save_output: bool, use_triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output o `[B, T, Ho, V]`; denominator `[B, T, Ho]`, S and z, empty where they are not asked for.

    All in the accumulation dtype, but o in that of v. Last come, if they are to be saved for the backward pass, the
    states between chunks and the summed gates, empty where it has to compute them again, and o in the accumulation
    dtype, empty where o is: the gradient of a normalised o needs all digits.
    """
    if use_triton:
        return triton_forward(
            q, k, v, log_g, S, z, cu_seqlens, p, scale, normalize, chunk_size, return_state, save_states, save_output
        )
    o, *rest = _chunked(q, k, v, log_g, S, z, cu_seqlens, p, scale, normalize, chunk_size, return_state)
    saved = _or_empty(None, q), _or_empty(None, q), o if save_output and o.dtype != v.dtype else _or_empty(None, q)
    return o.to(v.dtype), *rest, *saved


@attend.register_fake
def _fake_attend(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    cu_seqlens: Tensor | None, p: int, scale: float, normalize: bool, chunk_size: int, return_state: bool,
    save_states: bool, save_output: bool, use_triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    o, *rest = _fake(q, k, v, log_g, S, z, cu_seqlens, p, scale, normalize, chunk_size, return_state)
    exact = o if save_output and o.dtype != v.dtype else _or_empty(None, q)
    if not (use_triton and save_states):
        return o.to(v.dtype), *rest, _or_empty(None, q), _or_empty(None, q), exact
    shape, dtype = saved_states_shape(q, k, v, S, cu_seqlens, p, chunk_size)
    gates = q.new_empty(saved_gates_shape(q, k, v, log_g, cu_seqlens, p, chunk_size), dtype=torch.float32)
    return o.to(v.dtype), *rest, q.new_empty(shape, dtype=dtype), gates, exact


@torch.library.custom_op("zoo::power_attention_chunked_backward", mutates_args=())
def _chunked_backward(
    do: Tensor, dS: Tensor | None, dz: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    o: Tensor, denominator: Tensor, cu_seqlens: Tensor | None, p: int, scale: float, normalize: bool, chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, log_g, S and z; the last three empty where there is no such input."""
    options: dict[str, Any] = {"p": p, "scale": scale, "chunk_size": chunk_size}
    outputs, totals = (o, denominator) if normalize else (None, None)
    if cu_seqlens is None:
        parts = [chunked.backward(do, dS, dz, q, k, v, log_g, S, z, outputs, totals, **options)]
    else:
        parts = []
        for row, at in _sequences(cu_seqlens):
            do_at, q_at, k_at, v_at, g_at, o_at, totals_at = _tokens(at, do, q, k, v, log_g, outputs, totals)
            dS_at, dz_at, S_at, z_at = _rows(row, dS, dz, S, z)
            parts.append(
                chunked.backward(do_at, dS_at, dz_at, q_at, k_at, v_at, g_at, S_at, z_at, o_at, totals_at, **options)
            )
    dq, dk, dv, dlog_g, dS_in, dz_in = zip(*parts, strict=True)
    return (
        _join(dq, 1),
        _join(dk, 1),
        _join(dv, 1),
        _or_empty(None, q) if log_g is None else _join(dlog_g, 1),
        _or_empty(None, q) if S is None else _join(dS_in, 0),
        _or_empty(None, q) if S is None else _join(dz_in, 0),
    )


def _join(parts: tuple[Any, ...], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


@_chunked_backward.register_fake
def _fake_backward(
    do: Tensor, dS: Tensor | None, dz: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    o: Tensor, denominator: Tensor, cu_seqlens: Tensor | None, p: int, scale: float, normalize: bool, chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    dlog_g, dS_in, dz_in = (
        _or_empty(None, q) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (log_g, S, z)
    )
    return dq, dk, dv, dlog_g, dS_in, dz_in


@triton_op("zoo::power_attention_backward")
def _attend_backward(
    do: Tensor, dS: Tensor | None, dz: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    o: Tensor, denominator: Tensor, states: Tensor, gates: Tensor, cu_seqlens: Tensor | None,
    p: int, scale: float, normalize: bool, chunk_size: int, use_triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, log_g, S and z; the last three empty where there is no such input."""
    if use_triton:
        return triton_backward(
            do, dS, dz, q, k, v, log_g, S, z, o, denominator, states, gates, cu_seqlens,
            p, scale, normalize, chunk_size,
        )  # fmt: skip
    return _chunked_backward(
        do, dS, dz, q, k, v, log_g, S, z, o, denominator, cu_seqlens, p, scale, normalize, chunk_size
    )


@_attend_backward.register_fake
def _fake_attend_backward(
    do: Tensor, dS: Tensor | None, dz: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    o: Tensor, denominator: Tensor, states: Tensor, gates: Tensor, cu_seqlens: Tensor | None,
    p: int, scale: float, normalize: bool, chunk_size: int, use_triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _fake_backward(do, dS, dz, q, k, v, log_g, S, z, o, denominator, cu_seqlens, p, scale, normalize, chunk_size)


def _fake_backward_kernels(*arguments: Any) -> tuple[Tensor, ...]:
    """Of the op that is opaque: gradients of shared heads are still to be added."""
    q, k, v = arguments[3:6]
    heads = Heads(q.shape[2], k.shape[2], v.shape[2])
    gradients = _fake_attend_backward(*arguments, use_triton=True)
    separate = (separate_gradients(x, n) for x, n in ((q, heads.output), (k, heads.state), (v, heads.state)))
    return *separate, *gradients[3:]


if TRITON:
    torch.library.register_fake("zoo::power_attention_kernels", partial(_fake_attend, use_triton=True))
    torch.library.register_fake("zoo::power_attention_backward_kernels", _fake_backward_kernels)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, p, scale, normalize, chunk_size, _return_state, _save_states, _save_output, use_triton = inputs
    o, denominator, _S, _z, states, gates, exact = output
    o = (o if exact.dim() == 1 else exact) if normalize else _or_empty(None, o)
    ctx.save_for_backward(*tensors, o, denominator, states, gates)
    ctx.options = (p, scale, normalize, chunk_size, use_triton)
    ctx.mark_non_differentiable(denominator, states, gates, exact)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, do: Tensor | None, _denominator: Tensor | None, dS: Tensor | None, dz: Tensor | None,
    _states: Tensor | None, _gates: Tensor | None, _exact: Tensor | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    q, k, v, log_g, S, z, cu_seqlens, o, denominator, states, gates = ctx.saved_tensors
    if dS is not None and dz is None:
        dz = dS.new_zeros(dS.shape[:-1])
    if dz is not None and dS is None:
        dS = dz.new_zeros(*dz.shape, v.shape[-1])
    if dS is not None and dS.numel() == 0:
        dS = dz = None
    if do is None:
        do = v.new_zeros(*v.shape[:2], Heads(q.shape[2], k.shape[2], v.shape[2]).output, v.shape[3])
    with in_backward_graph():
        dq, dk, dv, dlog_g, dS_in, dz_in = _attend_backward(
            do, dS, dz, q, k, v, log_g, S, z, o, denominator, states, gates, cu_seqlens, *ctx.options
        )
    dlog_g = None if log_g is None else dlog_g
    incoming = (None, None) if S is None else (dS_in, dz_in)
    return dq, dk, dv, dlog_g, *incoming, *(None,) * 9


attend.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("zoo::power_attention_step", mutates_args=("S", "z"))
def step(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor, z: Tensor, p: int, scale: float, normalize: bool
) -> Tensor:
    """One token: o `[B, Ho, V]`, with S `[B, Hs, D, V]` and z `[B, Hs, D]` updated in place."""
    if TRITON and supports_triton_step(q, k, v, S, z, p):
        return triton_step(q, k, v, log_g, S, z, p=p, scale=scale, normalize=normalize)
    return step_in_place(q, k, v, log_g, S, z, p=p, scale=scale, normalize=normalize)


@step.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor, z: Tensor, p: int, scale: float, normalize: bool
) -> Tensor:
    return v.new_empty(v.shape[0], Heads(q.shape[1], k.shape[1], v.shape[1]).output, v.shape[2])


# Autocast lowers q, k and v; gates and states stay float32, which torch.library.register_autocast cannot express.
_library = torch.library.Library("zoo", "FRAGMENT")


def _with_autocast(op: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    def cast(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
        lowered = cast_for_autocast(q, k, v)
        with torch.autocast(device_type, enabled=False):
            return op(*lowered, *rest)

    return cast


for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    _library.impl("power_attention", _with_autocast(attend, _device), _key)
    _library.impl("power_attention_step", _with_autocast(step, _device), _key)


def _shapes(q: Any, k: Any, v: Any) -> tuple[Heads, int, int]:
    """Head counts, K and V from the shapes that a FLOP formula gets."""
    return Heads(q[-2], k[-2], v[-2]), k[-1], v[-1]


@register_flop_formula(torch.ops.zoo.power_attention)
def _(
    q: Any, k: Any, v: Any, log_g: Any, S: Any, z: Any, cu_seqlens: Any,
    p: int, scale: float, normalize: bool, chunk_size: int, return_state: bool, save_states: bool, save_output: bool,
    use_triton: bool, *, out_shape: Any = None, **_: Any,
) -> int:  # fmt: skip
    heads, K, V = _shapes(q, k, v)
    return forward_flops(q[0], q[1], heads, K, V, p, chunk_size, with_state=return_state or S is not None)


@register_flop_formula(torch.ops.zoo.power_attention_backward)
def _(
    do: Any, dS: Any, dz: Any, q: Any, k: Any, v: Any, log_g: Any, S: Any, z: Any, o: Any, denominator: Any,
    states: Any, gates: Any, cu_seqlens: Any, p: int, scale: float, normalize: bool, chunk_size: int, use_triton: bool,
    *, out_shape: Any = None, **_: Any,
) -> int:  # fmt: skip
    heads, K, V = _shapes(q, k, v)
    with_state = dS is not None or S is not None
    return backward_flops(q[0], q[1], heads, K, V, p, chunk_size, with_state=with_state)


@register_flop_formula(torch.ops.zoo.power_attention_step)
def _(
    q: Any, k: Any, v: Any, log_g: Any, S: Any, z: Any, p: int, scale: float, normalize: bool,
    *, out_shape: Any = None, **_: Any,
) -> int:  # fmt: skip
    heads, K, V = _shapes(q, k, v)
    return step_flops(q[0], heads, K, V, p)
