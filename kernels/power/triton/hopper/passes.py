"""What one call asks of the fused kernels: outputs, and gradients of queries, keys and values."""

from torch import Tensor

from zoo.kernels.power.triton.hopper.launches import attend_chunks, differentiate_chunks
from zoo.kernels.power.triton.problem import OutputGradient, Problem

__all__ = ["gradients", "outputs"]


def outputs(
    problem: Problem, states: Tensor | None, exact: bool, *, normalize: bool, has_initial: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """o `[B, T, Ho, V]`, if exact the same in float32, and if normalised the denominators `[B, T, Ho]` in float32."""
    heads, chunks, nothing = problem.heads, problem.chunks, problem.nothing
    results = attend_chunks(
        problem.q, nothing if states is None else problem.queries, problem.k, problem.v,
        nothing if states is None else states, problem.gates, problem.tables[0], problem.scale,
        chunks.size, chunks.slots, heads.output, heads.state, problem.layout.rows, has_initial, normalize, exact,
        problem.packed,
    )  # fmt: skip
    return results[0], results[1] if exact else None, results[-1] if normalize else None


def gradients(
    problem: Problem, gradient: OutputGradient, states: Tensor | None, dstates: Tensor | None, *,
    has_initial: bool, has_final: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq `[B, T, Ho, K]`, dk and dv `[B, T, Hs, K or V]`, and products of the former two with q and k over 2
    `[2, slots, Ho or Hs, C]`, empty if not gated: the chunk's part and the states'.
    """
    heads, chunks, nothing = problem.heads, problem.chunks, problem.nothing
    do, delta, factors, _ = gradient
    return differentiate_chunks(
        problem.q, nothing if states is None else problem.queries,
        problem.k, nothing if dstates is None else problem.keys, problem.v,
        do, factors, nothing if delta is None else delta,
        nothing if states is None else states, nothing if dstates is None else dstates,
        problem.gates, problem.tables[0], chunks.size, chunks.slots, heads.output, heads.state, problem.layout.rows,
        has_initial, delta is not None or has_final, problem.packed,
    )  # fmt: skip
