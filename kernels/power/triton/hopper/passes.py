"""What one call asks of the fused kernels: outputs, and gradients of queries, keys and values."""

import torch
from torch import Tensor

from zoo.kernels.power.triton.hopper.op import attend_chunks, differentiate_chunks
from zoo.kernels.power.triton.problem import Problem

__all__ = ["key_gradient", "outputs", "query_gradient", "value_gradient"]


def outputs(
    problem: Problem, states: Tensor | None, dtype: torch.dtype, *, normalize: bool, has_initial: bool
) -> tuple[Tensor, Tensor]:
    """o `[B, T, Ho, V]` in a dtype and the denominators `[B, T, Ho]` in float32 (empty if not normalised)."""
    heads, chunks = problem.heads, problem.chunks
    nothing = problem.nothing
    return attend_chunks(
        problem.q, nothing if states is None else problem.queries, problem.k, problem.v,
        nothing if states is None else states, problem.gates, nothing, problem.tables[0],
        dtype, problem.scale, chunks.size, chunks.slots, heads.output, heads.state, heads.state,
        problem.layout.rows, has_initial, normalize, False, problem.packed,
    )  # fmt: skip


def value_gradient(problem: Problem, do: Tensor, weights: Tensor, dstates: Tensor | None, dtype: torch.dtype) -> Tensor:
    """dv `[B, T, Hs, V]`, for do `[B, T, Ho, V]` and its factors `[slots, Ho, C]`."""
    heads, chunks = problem.heads, problem.chunks
    nothing = problem.nothing
    return attend_chunks(
        problem.k, nothing if dstates is None else problem.keys, problem.q, do,
        nothing if dstates is None else dstates, problem.gates, weights, problem.tables[0],
        dtype, 1.0, chunks.size, chunks.slots, heads.state, heads.output, heads.state,
        problem.layout.rows, True, False, True, problem.packed,
    )[0]  # fmt: skip


def query_gradient(
    problem: Problem, do: Tensor, weights: Tensor, delta: Tensor | None, states: Tensor | None, dtype: torch.dtype, *,
    has_initial: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dq `[B, T, Ho, K]`, and its product with q over 2 `[2, slots, Ho, C]` (empty if not gated).

    delta `[slots, Ho, C]` is do . o, None if not normalised; the rest as for `value_gradient`.
    """
    heads, chunks = problem.heads, problem.chunks
    nothing = problem.nothing
    return differentiate_chunks(
        problem.q, nothing if states is None else problem.queries, do, problem.k, problem.v,
        nothing if states is None else states, problem.gates, weights, nothing if delta is None else delta,
        problem.tables[0], dtype, chunks.size, chunks.slots, heads.output, heads.state, heads.state,
        problem.layout.rows, has_initial, delta is not None, False, problem.packed,
    )  # fmt: skip


def key_gradient(
    problem: Problem, do: Tensor, weights: Tensor, delta: Tensor | None, dstates: Tensor | None, dtype: torch.dtype, *,
    has_final: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dk `[B, T, Hs, K]`, and its product with k over 2 `[2, slots, Hs, C]`; as `query_gradient`."""
    heads, chunks = problem.heads, problem.chunks
    nothing = problem.nothing
    return differentiate_chunks(
        problem.k, nothing if dstates is None else problem.keys, problem.v, problem.q, do,
        nothing if dstates is None else dstates, problem.gates, weights, nothing if delta is None else delta,
        problem.tables[0], dtype, chunks.size, chunks.slots, heads.state, heads.output, heads.state,
        problem.layout.rows, True, delta is not None or has_final, True, problem.packed,
    )  # fmt: skip
