"""The forward and the backward pass, over a backend's sums, outputs and gradients."""

from typing import Any

import torch
from torch import Tensor

from zoo.kernels.launch import launcher
from zoo.kernels.power.call import Gradients, Incoming, Inputs, Options, Outputs, Saved, or_empty, present
from zoo.kernels.power.heads import gather_heads
from zoo.kernels.power.triton import portable
from zoo.kernels.power.triton.gate_gradient import gate_gradient_kernel
from zoo.kernels.power.triton.high import passes as high
from zoo.kernels.power.triton.hopper import passes as hopper
from zoo.kernels.power.triton.plan import Plan, make_plan
from zoo.kernels.power.triton.portable import OF_OFFSETS, linear_sums
from zoo.kernels.power.triton.prepare import (
    LOWEST_GATE,
    Columns,
    Operands,
    OutputGradient,
    Summands,
    Weighted,
    columns_to_end,
    key_columns,
    output_gradient,
    prepare,
    tile_state,
    untile_state,
)
from zoo.kernels.power.triton.states import Scan, add_lower, clear_normalisers, scan

__all__ = [
    "backend", "backward", "backward_without_values", "forward", "gate_gradient", "key_sums", "offset_gradient",
    "query_sums", "states_for_backward",
]  # fmt: skip

GATE_BLOCK = 256


def backend(plan: Plan) -> Any:
    """What makes its sums, outputs and gradients."""
    return hopper if plan.hopper else high if plan.p > 2 else portable


def forward(inputs: Inputs, options: Options) -> Outputs:
    """The output and what else the options ask for."""
    plan = make_plan(inputs, options)
    operands = prepare(plan, inputs, None, packs=inputs.S is not None or options.return_state)
    initial = tile_state(plan, operands, inputs.S, inputs.z)
    columns, states, final = Columns(), None, None
    if plan.has_states(initial) or options.return_state:
        columns, (states, final, _) = _states_before(
            plan, operands, initial, wants_normaliser=plan.normalize, wants_final=options.return_state
        )
    elif not plan.fused:
        columns = key_columns(plan, operands)
    o, exact, denominator = backend(plan).outputs(
        plan, operands, columns, states if plan.has_states(initial) else None, has_initial=initial is not None,
        exact=options.save_output and operands.v.dtype != torch.float32,
    )  # fmt: skip
    saves_states = options.save_states and plan.has_states(initial)
    saves_gates = options.save_states and plan.gated and not plan.exact_gates
    S, z = untile_state(plan, operands, final)
    return Outputs(
        o,
        denominator=or_empty(denominator, o),
        S=or_empty(S, o),
        z=or_empty(z, o),
        states=or_empty(states if saves_states else None, o, plan.dtype if options.save_states else None),
        gates=operands.gates if saves_gates else or_empty(None, o),
        exact=or_empty(exact, o),
    )


def states_for_backward(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """The states and the summed gates that `forward` saves, where several backward passes are of the same keys."""
    plan = make_plan(inputs, options)
    operands = prepare(plan, inputs, None, packs=inputs.S is not None or options.return_state)
    initial, states = tile_state(plan, operands, inputs.S, inputs.z), None
    if plan.has_states(initial):
        wants_normaliser = plan.normalize or options.return_state  # as of gradients of a last state
        _, (states, _, _) = _states_before(
            plan, operands, initial, wants_normaliser=wants_normaliser, wants_final=False
        )
    saves_gates = plan.gated and not plan.exact_gates
    return or_empty(states, inputs.q, plan.dtype), operands.gates if saves_gates else or_empty(None, inputs.q)


def _states_before(
    plan: Plan, operands: Operands, initial: Tensor | None, *, wants_normaliser: bool, wants_final: bool
) -> tuple[Columns, Scan]:
    """The state before each chunk, the final one where it is wanted, and the columns made on the way."""
    has_normalisers = wants_normaliser or wants_final
    columns, sums = key_sums(plan, operands, wants_normaliser=has_normalisers, wants_final=wants_final)
    if initial is not None and not has_normalisers:
        clear_normalisers(plan, sums)
    has_normalisers = has_normalisers or initial is not None
    return columns, scan(plan, operands, sums, initial, wants_final=wants_final, has_normalisers=has_normalisers)


def key_sums(plan: Plan, operands: Operands, *, wants_normaliser: bool, wants_final: bool) -> tuple[Columns, Tensor]:
    """What each chunk adds to the state, z's part where it is wanted, and the columns made on the way."""
    dtype, decayed = torch.float32 if wants_final else plan.dtype, None
    if plan.p == 1:
        columns, weighted = Columns(), Weighted(operands.k, operands.v, operands.left if plan.gated else None)
        sums = linear_sums(plan, operands, weighted, dtype, has_normaliser=wants_normaliser)
    else:
        columns, decayed = columns_to_end(plan, operands, exact=wants_final)
        summands = Summands(operands.or_nothing(columns.keys), decayed, operands.v)
        sums = backend(plan).sums(plan, operands, summands, dtype, has_normaliser=wants_normaliser)
    if plan.offset:
        add_lower(plan, operands, sums, decayed, operands.v, None, has_normaliser=wants_normaliser)
    return columns, sums


def backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Gradients of all inputs; those of heads that others share are still to be added.

    q's has the outputs' heads, k's and v's the states'. States before the chunks are computed once more where they were
    not saved.
    """
    return _backward(incoming, inputs, saved, options, wants_values=True)


def backward_without_values(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """As `backward`, with nothing for v."""
    return _backward(incoming, inputs, saved, options, wants_values=False)


def _backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options, *, wants_values: bool) -> Gradients:
    plan, states = make_plan(inputs, options), present(saved.states)
    packs = inputs.S is not None or incoming.dS is not None
    operands = prepare(plan, inputs, present(saved.gates), packs=packs)
    initial = tile_state(plan, operands, inputs.S, inputs.z)
    final_gradient = tile_state(plan, operands, incoming.dS, incoming.dz, gradient=True)
    has_initial, has_final = initial is not None, final_gradient is not None
    has_states, has_dstates = plan.has_states(initial), plan.has_states(final_gradient)
    columns = Columns()
    if has_states and states is None:
        columns, (states, _, _) = _states_before(
            plan, operands, initial, wants_normaliser=plan.normalize or has_final, wants_final=False
        )
    gradient, columns = output_gradient(plan, operands, incoming.do, saved, columns, decayed=has_dstates or has_initial)
    dstates = initial_gradient = crossing = None
    if gradient.weighted is not None:
        dstates, initial_gradient, crossing = _gradients_after(
            plan, operands, columns, gradient, final_gradient, wants_initial=has_initial,
            others=states if plan.gated and has_states else None,
        )  # fmt: skip
    dq, dk, dv, q_along, k_along = backend(plan).gradients(
        plan, operands, columns, gradient, states if has_states else None, dstates if has_dstates else None,
        has_initial=has_initial, has_final=has_final, wants_values=wants_values,
    )  # fmt: skip
    dlog_g = gate_gradient(plan, operands, q_along, k_along, crossing) if plan.gated else None
    dS, dz = untile_state(plan, operands, initial_gradient, gradient=True)
    doffset = offset_gradient(plan, q_along) if plan.offset else None
    return Gradients(dq, dk, dv, *(or_empty(x, dq) for x in (dlog_g, dS, dz, doffset)))


def _gradients_after(
    plan: Plan, operands: Operands, columns: Columns, gradient: OutputGradient, final: Tensor | None, *,
    wants_initial: bool, others: Tensor | None,
) -> Scan:  # fmt: skip
    """Gradients of the state after each chunk, of the incoming one where it is wanted, and their products with others.

    final: the gradient of the state after the last token.
    """
    has_state_beside = wants_initial or final is not None
    sums = query_sums(plan, operands, columns, gradient, wants_initial=wants_initial, fills=has_state_beside)
    return scan(
        plan, operands, sums, final, wants_final=wants_initial, has_normalisers=plan.normalize or has_state_beside,
        others=others, reverse=True,
    )  # fmt: skip


def query_sums(
    plan: Plan, operands: Operands, columns: Columns, gradient: OutputGradient, *, wants_initial: bool, fills: bool
) -> Tensor:
    """What each chunk's queries add to the state's gradient.

    fills: z's part with zeros where nothing is added there.
    """
    dtype, decayed = torch.float32 if wants_initial else plan.dtype, None
    if plan.p == 1:
        weighted = Weighted(operands.q, gradient.do, gradient.weighted, gradient.delta, plan.heads.queries_per_state)
        sums = linear_sums(plan, operands, weighted, dtype, has_normaliser=plan.normalize)
    else:
        decayed = operands.or_nothing(gradient.weighted)
        summands = Summands(operands.or_nothing(columns.queries), decayed, gradient.do, gradient.delta)
        sums = backend(plan).sums(plan, operands, summands, dtype, has_normaliser=plan.normalize)
    if fills and not plan.normalize:
        clear_normalisers(plan, sums)
    if plan.offset:
        add_lower(plan, operands, sums, decayed, gradient.do, gradient, has_normaliser=plan.normalize)
    return sums


def offset_gradient(plan: Plan, q_along: Tensor) -> Tensor:
    """doffset `[Hq]`, from what each output's tokens give it."""
    along = q_along[OF_OFFSETS].sum((0, 2), dtype=torch.float64) / plan.score_scale
    return gather_heads(along, plan.heads.query, 0).float()


def gate_gradient(plan: Plan, operands: Operands, q_along: Tensor, k_along: Tensor, crossing: Tensor | None) -> Tensor:
    """dlog_g `[B, T, Hv]`; crossing `[slots, Hs, parts]` is of tokens before a chunk with those after it."""
    heads, dlog_g = plan.heads, torch.empty_like(operands.log_g)
    launcher(gate_gradient_kernel)[(plan.slots, heads.value)](
        q_along, k_along, operands.log_g, operands.or_nothing(crossing), dlog_g, operands.bounds,
        plan.tokens, plan.C, plan.slots, heads.state, heads.output, heads.value,
        0 if crossing is None else crossing.shape[-1],
        BLOCK=GATE_BLOCK, LOWEST=LOWEST_GATE, HAS_CROSSING=crossing is not None, PACKED=plan.packed,
    )  # fmt: skip
    return dlog_g
