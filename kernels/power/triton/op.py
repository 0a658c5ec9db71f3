"""The Triton implementation behind the op: plain tensors in and out, absent ones empty."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.kernels.power.heads import Heads
from zoo.kernels.power.triton.backward import backward
from zoo.kernels.power.triton.chunks import count_slots, cut
from zoo.kernels.power.triton.configs import config
from zoo.kernels.power.triton.forward import forward
from zoo.kernels.power.triton.hopper.op import supports_hopper
from zoo.kernels.power.triton.layout import Layout
from zoo.kernels.power.triton.problem import Problem, product_dtype

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


def _or_empty(x: Tensor | None, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return like.new_empty(0, dtype=dtype) if x is None else x


def triton_forward(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    cu_seqlens: Tensor | None, p: int, scale: float, normalize: bool, chunk_size: int, return_state: bool,
    save_states: bool, save_output: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `zoo.kernels.power.op.attend`."""
    problem = Problem(q, k, v, log_g, cu_seqlens, p=p, scale=scale, chunk_size=chunk_size)
    exact = save_output and v.dtype != torch.float32
    output = forward(problem, S, z, normalize=normalize, return_state=return_state, exact=exact)
    states = _or_empty(output.states, q, problem.dtype) if save_states else _or_empty(None, q)
    gates = problem.gates if save_states and problem.gated and not problem.exact_gates else None
    denominator, S_out, z_out, gates, exact_o = (
        _or_empty(x, q) for x in (output.denominator, output.S, output.z, gates, output.exact)
    )
    return output.o, denominator, S_out, z_out, states, gates, exact_o


def triton_backward(
    do: Tensor, dS: Tensor | None, dz: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, S: Tensor | None, z: Tensor | None,
    o: Tensor, denominator: Tensor, states: Tensor, gates: Tensor, cu_seqlens: Tensor | None,
    p: int, scale: float, normalize: bool, chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `zoo.kernels.power.op.attend`."""
    summed = None if gates.dim() == 1 else gates
    problem = Problem(q, k, v, log_g, cu_seqlens, p=p, scale=scale, chunk_size=chunk_size, gates=summed)
    saved = None if states.dim() == 1 else states
    gradients = backward(problem, do, dS, dz, S, z, o, denominator if normalize else None, saved)
    dlog_g, dS_in, dz_in = (_or_empty(x, q) for x in gradients[3:])
    return gradients.q, gradients.k, gradients.v, dlog_g, dS_in, dz_in
