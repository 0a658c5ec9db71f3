"""The backward pass: the states once more, the states' gradients, and both sides' tokens."""

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.launch import launcher
from zoo.kernels.power.heads import separate_gradients
from zoo.kernels.power.triton.forward import (
    OUTERS,
    add_up,
    add_up_normalisers,
    clear_normalisers,
    scan,
    states_before,
)
from zoo.kernels.power.triton.gate_gradient import gate_gradient_kernel
from zoo.kernels.power.triton.hopper import passes
from zoo.kernels.power.triton.key_gradient import key_gradient_kernel
from zoo.kernels.power.triton.problem import LOWEST_GATE, OutputGradient, Problem
from zoo.kernels.power.triton.query_gradient import query_gradient_kernel
from zoo.kernels.power.triton.value_gradient import value_gradient_kernel

__all__ = ["Gradients", "backward"]

GATE_BLOCK = 256


class Gradients(NamedTuple):
    """Gradients of q, k, v, log_g and the incoming state, None for absent ones.

    Those of heads that others share are still to be added: q's has the outputs' heads, k's and v's the states'.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor | None
    S: Tensor | None
    z: Tensor | None


def backward(
    problem: Problem, do: Tensor, dS: Tensor | None, dz: Tensor | None, S: Tensor | None, z: Tensor | None,
    o: Tensor, denominator: Tensor | None, states: Tensor | None,
) -> Gradients:  # fmt: skip
    """Gradients of all inputs from those of o and of the outgoing state (or None).

    States before the chunks are computed once more where they were not saved.
    """
    initial = None if S is None or z is None else problem.from_packed(S, z)
    final_gradient = None if dS is None or dz is None else problem.from_packed(dS, dz, gradient=True)
    dstates = initial_gradient = crossing = None
    has_states, has_dstates = problem.has_states(initial), problem.has_states(final_gradient)
    if has_states and states is None:
        wants_normaliser = denominator is not None or final_gradient is not None
        states, _ = states_before(problem, initial, wants_normaliser=wants_normaliser, wants_final=False)
    wants_dstates = has_dstates or initial is not None
    gradient = problem.output_gradient(do, o, denominator, decayed=wants_dstates)
    if gradient.queries is not None:
        sums = add_up(problem, gradient.queries, gradient.do, exact=initial is not None)
        has_states_beside = initial is not None or final_gradient is not None
        if gradient.delta is not None:
            add_up_normalisers(problem, sums, gradient.queries, gradient.delta)
        elif has_states_beside:
            clear_normalisers(problem, sums)
        dstates, initial_gradient, crossing = scan(
            problem, sums, final_gradient, wants_final=initial is not None,
            has_normalisers=gradient.delta is not None or has_states_beside,
            others=states if problem.gated and has_states else None, reverse=True,
        )  # fmt: skip
    if not has_states:
        states = None
    if not has_dstates:
        dstates = None
    differentiate = passes.gradients if problem.fused else _gradients
    dq, dk, dv, q_along, k_along = differentiate(
        problem, gradient, states, dstates, has_initial=initial is not None, has_final=final_gradient is not None
    )
    dlog_g = None if problem.log_g is None else _gate_gradient(problem, q_along, k_along, crossing)
    S_gradient, z_gradient = (
        (None, None) if initial_gradient is None else problem.to_packed(initial_gradient, gradient=True)
    )
    return Gradients(dq, dk, dv, dlog_g, S_gradient, z_gradient)


def _gradients(
    problem: Problem, gradient: OutputGradient, states: Tensor | None, dstates: Tensor | None, *,
    has_initial: bool, has_final: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q_along, k_along = problem.along()
    dq = _query_gradient(problem, gradient, states, q_along, has_initial)
    dk = _key_gradient(problem, gradient, dstates, k_along, has_final)
    return dq, dk, _value_gradient(problem, gradient, dstates), q_along, k_along


def _query_gradient(
    problem: Problem, gradient: OutputGradient, states: Tensor | None, along: Tensor, has_initial: bool
) -> Tensor:
    heads, chunks, layout, launch = problem.heads, problem.chunks, problem.layout, problem.config.query_gradient
    q = problem.q
    given = None
    if states is not None:
        given = problem.gradients_from_states(gradient.do, problem.queries, states, heads.output, has_initial)
    dq = separate_gradients(q, heads.output)
    blocks = problem.blocks(launch.block)
    launcher(query_gradient_kernel)[(blocks * heads.output * chunks.slots,)](
        q, problem.queries, problem.keys, problem.v, gradient.do,
        problem.or_nothing(gradient.delta), gradient.factors, problem.gates, problem.gates_low,
        problem.or_nothing(states), problem.or_nothing(given), dq, along,
        problem.tables[0],
        layout.channels, layout.symmetric, layout.gradient_weights,
        q.shape[1], chunks.size, layout.outers, layout.rows,
        *heads, heads.state, heads.output, blocks, chunks.slots,
        K=problem.K, V=problem.V, P=problem.p, INNER=layout.inner, OUTERS=OUTERS, BLOCK=launch.block,
        KEYS=launch.other, NORMALIZE=gradient.delta is not None, GATED=problem.gated, EXACT_GATES=problem.exact_gates,
        HAS_STATES=states is not None, GIVEN=given is not None,
        HAS_INITIAL=has_initial, PACKED=problem.packed, PRECISION=problem.precision,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return dq


def _key_gradient(
    problem: Problem, gradient: OutputGradient, dstates: Tensor | None, along: Tensor, has_final: bool
) -> Tensor:
    heads, chunks, layout, launch = problem.heads, problem.chunks, problem.layout, problem.config.key_gradient
    k = problem.k
    given = None
    if dstates is not None:
        given = problem.gradients_from_states(problem.v, problem.keys, dstates, heads.state, True)
    dk = separate_gradients(k, heads.state)
    blocks = problem.blocks(launch.block)
    launcher(key_gradient_kernel)[(blocks * heads.state * chunks.slots,)](
        problem.q, k, problem.keys, problem.v, gradient.do,
        problem.or_nothing(gradient.delta), gradient.factors, problem.gates, problem.gates_low,
        problem.or_nothing(dstates), problem.or_nothing(given), dk, along,
        problem.tables[0],
        layout.channels, layout.symmetric, layout.gradient_weights,
        k.shape[1], chunks.size, layout.outers, layout.rows,
        *heads, heads.state, heads.output, blocks, chunks.slots,
        K=problem.K, V=problem.V, P=problem.p, INNER=layout.inner, OUTERS=OUTERS,
        BLOCK=launch.block, QUERIES=launch.other, NORMALIZE=gradient.delta is not None,
        HAS_NORMALISER=gradient.delta is not None or has_final, GATED=problem.gated, EXACT_GATES=problem.exact_gates,
        HAS_STATES=dstates is not None, GIVEN=given is not None, PACKED=problem.packed, PRECISION=problem.precision,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return dk


def _value_gradient(problem: Problem, gradient: OutputGradient, dstates: Tensor | None) -> Tensor:
    heads, chunks, layout, launch = problem.heads, problem.chunks, problem.layout, problem.config.value_gradient
    v = problem.v
    given = None
    if dstates is not None:
        given = problem.outputs_from_states(problem.k, problem.keys, dstates, heads.state, True)
    dv = separate_gradients(v, heads.state)
    blocks = problem.blocks(launch.block)
    launcher(value_gradient_kernel)[(blocks * heads.state * chunks.slots,)](
        problem.q, problem.k, problem.keys, gradient.do, gradient.factors, problem.gates,
        problem.gates_low, problem.or_nothing(dstates),
        problem.or_nothing(given), dv, problem.tables[0],
        layout.channels, layout.weights,
        v.shape[1], chunks.size, layout.outers, layout.rows,
        heads.query, heads.key, heads.state, heads.output, blocks,
        K=problem.K, V=problem.V, P=problem.p, INNER=layout.inner, BLOCK=launch.block, QUERIES=launch.other,
        GATED=problem.gated, EXACT_GATES=problem.exact_gates,
        HAS_STATES=dstates is not None, GIVEN=given is not None, PACKED=problem.packed, PRECISION=problem.precision,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return dv


def _gate_gradient(problem: Problem, q_along: Tensor, k_along: Tensor, crossing: Tensor | None) -> Tensor:
    """dlog_g `[B, T, Hv]`; crossing `[slots, Hs, parts]` is of tokens before a chunk with those after it."""
    heads, chunks, log_g = problem.heads, problem.chunks, problem.log_g
    assert log_g is not None
    dlog_g = torch.empty_like(log_g)
    launcher(gate_gradient_kernel)[(chunks.slots, heads.value)](
        q_along, k_along, log_g, problem.or_nothing(crossing), dlog_g, problem.tables[0],
        chunks.tokens, chunks.size, chunks.slots, heads.state, heads.output, heads.value,
        0 if crossing is None else crossing.shape[-1],
        BLOCK=GATE_BLOCK, LOWEST=LOWEST_GATE, HAS_CROSSING=crossing is not None, PACKED=problem.packed,
    )  # fmt: skip
    return dlog_g
