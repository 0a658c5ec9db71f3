"""The Triton implementation behind the op: plain tensors in and out, absent ones empty.

Either the compiler sees through the op to its kernels, or each pass is one opaque op. It is where models train, in
bfloat16 at p <= 2: to see through it took a third of the time in which a model is compiled, there is nothing left to
fuse, and Hopper's own kernels the compiler does not know. An opaque pass is launched as it was recorded.
"""

from collections.abc import Hashable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels.launch import Launch, compile_together, rehearsal, unseen
from zoo.kernels.power.heads import Heads, gather_heads
from zoo.kernels.power.triton.backward import backward
from zoo.kernels.power.triton.chunks import count_slots, cut
from zoo.kernels.power.triton.configs import config, wanted
from zoo.kernels.power.triton.forward import forward
from zoo.kernels.power.triton.hopper.launches import supports_hopper
from zoo.kernels.power.triton.layout import Layout
from zoo.kernels.power.triton.problem import Problem, product_dtype
from zoo.kernels.recording import Recorder
from zoo.kernels.registration import register_op
from zoo.kernels.triton_support import INTERPRETED

__all__ = ["saved_gates_shape", "saved_states_shape", "triton_backward", "triton_forward"]


def saved_states_shape(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor | None, cu_seqlens: Tensor | None, p: int, chunk_size: int
) -> tuple[Sequence[int], torch.dtype]:
    """Shape and dtype of the states that `triton_forward` saves."""
    K, V = int(k.shape[-1]), int(v.shape[-1])
    blocks, dtype = config(q, K, V, p, hopper=supports_hopper(q, K, V, p)), product_dtype(q.dtype)
    slots = count_slots(q, blocks, chunk_size, cu_seqlens)
    if S is None and cu_seqlens is None and slots == q.shape[0]:
        return (0,), dtype
    heads = Heads(q.shape[2], k.shape[2], v.shape[2])
    return (slots, heads.state, Layout(K, p, blocks.inner, q).rows * (V + 1)), dtype


def saved_gates_shape(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, cu_seqlens: Tensor | None, p: int, chunk_size: int
) -> Sequence[int]:
    """Shape of the summed gates that `triton_forward` saves, in float32; none are where they have low parts as well."""
    if log_g is None or q.dtype == torch.float32:
        return (0,)
    K, V = int(k.shape[-1]), int(v.shape[-1])
    chunks = cut(q, config(q, K, V, p, hopper=supports_hopper(q, K, V, p)), chunk_size, cu_seqlens)
    return chunks.slots, Heads(q.shape[2], k.shape[2], v.shape[2]).state, chunks.size


def _is_opaque(q: Tensor, p: int) -> bool:
    return q.device.type == "cuda" and q.dtype == torch.bfloat16 and p <= 2 and not INTERPRETED


def _or_empty(x: Tensor | None, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return like.new_empty(0, dtype=dtype) if x is None else x


def _laid_out(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As the kernels read them, and where the compiler sees it."""
    return q.contiguous(), k.contiguous(), v.contiguous(), None if log_g is None else log_g.float().contiguous()


def triton_forward(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    cu_seqlens: Tensor | None, p: int, scale: float, normalize: bool, chunk_size: int, return_state: bool,
    save_states: bool, save_output: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `zoo.kernels.power.op.attend`."""
    run: Any = _forward
    if _is_opaque(q, p):
        run = _forward_unseen
        q, k, v, log_g = _laid_out(q, k, v, log_g)
    return run(
        q, k, v, log_g, S, z, cu_seqlens, p, scale, normalize, chunk_size, return_state, save_states, save_output
    )


def triton_backward(
    do: Tensor, dS: Tensor | None, dz: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    o: Tensor, denominator: Tensor, states: Tensor, gates: Tensor, cu_seqlens: Tensor | None,
    p: int, scale: float, normalize: bool, chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `zoo.kernels.power.op.attend`."""
    run: Any = _backward
    if _is_opaque(q, p):
        run = _backward_unseen
        do = do.to(q.dtype).contiguous()
        q, k, v, log_g = _laid_out(q, k, v, log_g)
    dq, dk, dv, *rest = run(
        do, dS, dz, q, k, v, log_g, S, z, o, denominator, states, gates, cu_seqlens, p, scale, normalize, chunk_size
    )
    dq, dk, dv = (gather_heads(dx, x.shape[2], 2).to(x.dtype) for dx, x in ((dq, q), (dk, k), (dv, v)))
    return dq, dk, dv, *rest


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    cu_seqlens: Tensor | None, p: int, scale: float, normalize: bool, chunk_size: int, return_state: bool,
    save_states: bool, save_output: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    problem = Problem(q, k, v, log_g, cu_seqlens, p=p, scale=scale, chunk_size=chunk_size)
    exact = save_output and v.dtype != torch.float32
    output = forward(problem, S, z, normalize=normalize, return_state=return_state, exact=exact)
    states = _or_empty(output.states, q, problem.dtype) if save_states else _or_empty(None, q)
    gates = problem.gates if save_states and problem.gated and not problem.exact_gates else None
    denominator, S_out, z_out, gates, exact_o = (
        _or_empty(x, q) for x in (output.denominator, output.S, output.z, gates, output.exact)
    )
    return output.o, denominator, S_out, z_out, states, gates, exact_o


def _backward(
    do: Tensor, dS: Tensor | None, dz: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    o: Tensor, denominator: Tensor, states: Tensor, gates: Tensor, cu_seqlens: Tensor | None,
    p: int, scale: float, normalize: bool, chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `triton_backward`; gradients of shared heads are still to be added, where the compiler sees it."""
    summed = None if gates.dim() == 1 else gates
    problem = Problem(q, k, v, log_g, cu_seqlens, p=p, scale=scale, chunk_size=chunk_size, gates=summed)
    saved = None if states.dim() == 1 else states
    gradients = backward(problem, do, dS, dz, S, z, o, denominator if normalize else None, saved)
    dlog_g, dS_in, dz_in = (_or_empty(x, q) for x in gradients[3:])
    return gradients.q, gradients.k, gradients.v, dlog_g, dS_in, dz_in


def _rehearse(*arguments: Any) -> list[Launch]:
    """What a forward pass launches, and the backward pass if anything is saved for one; arguments as `_forward`'s."""
    tensors, options = arguments[:7], arguments[7:]
    p, scale, normalize, chunk_size, _, save_states, save_output = options
    with FakeTensorMode() as mode, rehearsal() as launches:
        *inputs, cu_seqlens = (None if x is None else mode.from_tensor(x) for x in tensors)
        run: Any = _forward
        o, denominator, _, _, states, gates, exact = run(*inputs, cu_seqlens, *options)
        if save_states or save_output:
            run, saved = _backward, (o if exact.dim() == 1 else exact, denominator, states, gates)
            run(torch.empty_like(o), None, None, *inputs, *saved, cu_seqlens, p, scale, normalize, chunk_size)
    return launches


_prepared: set[Hashable] = set()  # kinds of calls


def _prepare(*arguments: Any) -> None:
    """Before the first call of its kind, compile its kernels side by side."""
    (q, k, v, *rest), options = arguments[:7], arguments[7:]
    K, V, p = k.shape[3], v.shape[3], options[0]
    blocks = config(q, K, V, p, hopper=supports_hopper(q, K, V, p))
    single = count_slots(q, blocks, options[3], rest[-1]) <= len(q)
    kind = (q.device, *(x.shape[2:] for x in (q, k, v)), single, *(x is None for x in rest), *options)
    if kind not in _prepared and not INTERPRETED:
        _prepared.add(kind)
        compile_together(_rehearse(*arguments), q.device)


_run_forward, _run_backward = Recorder(_forward, prepare=_prepare, variant=wanted), Recorder(_backward, variant=wanted)


@register_op("power_attention_kernels")
@wraps(_forward)  # and so of its signature
def _forward_unseen(*arguments: Any) -> Any:
    with unseen(arguments[0].device):
        return _run_forward(*arguments)


@register_op("power_attention_backward_kernels")
@wraps(_backward)
def _backward_unseen(*arguments: Any) -> Any:
    with unseen(arguments[0].device):
        return _run_backward(*arguments)
