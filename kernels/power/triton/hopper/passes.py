"""What one call asks of the fused kernels: outputs, and gradients of queries, keys and values."""

import torch
from torch import Tensor

from zoo.kernels.power.heads import separate_gradients
from zoo.kernels.power.triton.hopper.launches import attend, differentiate
from zoo.kernels.power.triton.problem import OutputGradient, Problem

__all__ = ["gradients", "outputs"]


def outputs(
    problem: Problem, states: Tensor | None, exact: bool, *, normalize: bool, has_initial: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """o `[B, T, Ho, V]`, if exact the same in float32, and if normalised the denominators `[B, T, Ho]` in float32."""
    heads, chunks, nothing = problem.heads, problem.chunks, problem.nothing
    o = problem.v.new_empty(*problem.q.shape[:2], heads.output, problem.V)
    exact_o = torch.empty_like(o, dtype=torch.float32) if exact else None
    denominator = o.new_empty(o.shape[:3], dtype=torch.float32) if normalize else None
    attend(
        problem.q, nothing if states is None else problem.queries, problem.k, problem.v,
        problem.or_nothing(states), problem.gates, problem.gates, o, exact_o, denominator,
        problem.tables[0], problem.scale, chunks.size, chunks.slots, heads.state, heads.state, problem.layout.rows,
        first=has_initial, reverse=False, packed=problem.packed,
    )  # fmt: skip
    return o, exact_o, denominator


def gradients(
    problem: Problem, gradient: OutputGradient, states: Tensor | None, dstates: Tensor | None, *,
    has_initial: bool, has_final: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq `[B, T, Ho, K]`, dk and dv `[B, T, Hs, K or V]`, and products of the former two with q and k over 2
    `[2, slots, Ho or Hs, C]`, empty if not gated: the chunk's part and the states'.
    """
    heads, chunks, nothing = problem.heads, problem.chunks, problem.nothing
    q, k, v, gates, bounds, rows = (
        problem.q,
        problem.k,
        problem.v,
        problem.gates,
        problem.tables[0],
        problem.layout.rows,
    )
    do, delta, factors, _ = gradient
    normalised = delta is not None
    q_columns, states = (nothing, nothing) if states is None else (problem.queries, states)
    k_columns, dstates = (nothing, nothing) if dstates is None else (problem.keys, dstates)
    delta = problem.or_nothing(delta)
    dq, dk, dv = (separate_gradients(x, n) for x, n in ((q, heads.output), (k, heads.state), (v, heads.state)))
    q_along, k_along = problem.along()
    differentiate(
        q, q_columns, do, k, v, states, gates, factors, delta, dq, q_along, bounds, chunks.size, chunks.slots,
        heads.state, heads.state, rows, first=has_initial, has_normaliser=normalised, reverse=False,
        packed=problem.packed,
    )  # fmt: skip
    differentiate(
        k, k_columns, v, q, do, dstates, gates, factors, delta, dk, k_along, bounds, chunks.size, chunks.slots,
        heads.output, heads.state, rows, first=True, has_normaliser=normalised or has_final, reverse=True,
        packed=problem.packed,
    )  # fmt: skip
    attend(
        k, k_columns, q, do, dstates, gates, factors, dv, None, None, bounds, 1.0, chunks.size, chunks.slots,
        heads.output, heads.state, rows, first=True, reverse=True, packed=problem.packed,
    )  # fmt: skip
    return dq, dk, dv, q_along, k_along
