"""The state form in plain PyTorch, in the inputs' dtype: what a narrow state costs, whoever computes with it."""

from dataclasses import replace

import torch
from torch import Tensor

from zoo.kernels.power import PowerState
from zoo.kernels.power.call import Inputs
from zoo.kernels.power.heads import spread_heads
from zoo.kernels.power.reference import quadratic

from ..problems import Problem, Tensors, differentiate

__all__ = ["run_in_chunks"]


def _carried(exact: PowerState, read: PowerState, after: PowerState, log_g: Tensor | None) -> PowerState:
    """The state after a chunk that read a rounded one: what rounding took from the past is put back."""
    lost = [exact.S - read.S, exact.z - read.z]
    if log_g is not None:
        decay = spread_heads(log_g.sum(1).exp(), exact.z.shape[1], 1)
        lost = [lost[0] * decay[..., None, None], lost[1] * decay[..., None]]
    return PowerState(after.S + lost[0], after.z + lost[1])


def _attend(problem: Problem, size: int) -> tuple[Tensor, PowerState]:
    """The quadratic form chunk by chunk; the state between chunks is read in the inputs' dtype, carried in float32."""
    outputs, state, dtype = [], problem.state, problem.q.dtype
    for start in range(0, problem.q.shape[1], size):
        chunk = problem.tokens(start, start + size)
        read = None if state is None else PowerState(*(x.to(dtype).to(x.dtype) for x in state))
        options = {"p": problem.p, "scale": problem.scale, "normalize": problem.normalize}
        o, after = quadratic(Inputs(chunk.q, chunk.k, chunk.v, chunk.log_g, *(read or (None, None))), **options)
        state = after if state is None or read is None else _carried(state, read, after, chunk.log_g)
        outputs.append(o)
    assert state is not None
    return torch.cat(outputs, 1), state


def run_in_chunks(problem: Problem, size: int) -> Tensors:
    """Results and gradients by name, as `problems.run` gives them."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    o, state = _attend(replace(problem, **leaves), size)
    results = {"o": o, "S_out": state.S, "z_out": state.z}
    return {name: x.detach() for name, x in results.items()} | differentiate(results, leaves, problem.gradients)
