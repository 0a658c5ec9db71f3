"""The halves of both passes, for a share of a sequence: see `zoo.kernels.power.context`, whose arguments these have."""

import torch
from torch import Tensor

from zoo.kernels.power.call import Gradients, Incoming, Inputs, Options, Outputs, Saved, or_empty, present
from zoo.kernels.power.heads import gather_heads
from zoo.kernels.power.triton.passes import backend, gate_gradient, key_sums, offset_gradient, query_sums
from zoo.kernels.power.triton.plan import Plan, make_plan
from zoo.kernels.power.triton.prepare import (
    Columns,
    output_gradient,
    plain_columns,
    prepare,
    tile_state,
    untile_state,
)
from zoo.kernels.power.triton.states import Scan, scan

__all__ = ["share_gradient_sums", "share_gradients", "share_outputs", "share_sums", "sums_shape"]


def sums_shape(inputs: Inputs, options: Options) -> tuple[int, ...]:
    """Of what chunks add to a state."""
    return make_plan(inputs, options).state_shape


def share_sums(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """What each chunk adds to the state, and S and z after all of them, from an empty one."""
    plan = make_plan(inputs, options)
    operands = prepare(plan, inputs, None, packs=True)
    _, sums = key_sums(plan, operands, wants_normaliser=True, wants_final=True)
    found = scan(plan, operands, _apart(plan, sums), None, wants_final=True, has_normalisers=True)
    S, z = untile_state(plan, operands, found.final)
    assert S is not None
    assert z is not None
    return sums, S, z


def share_outputs(inputs: Inputs, sums: Tensor, options: Options) -> Outputs:
    """The output with the state that comes in, and what is saved for the backward pass."""
    plan = make_plan(inputs, options)
    operands = prepare(plan, inputs, None, packs=True)
    initial, columns = tile_state(plan, operands, inputs.S, inputs.z), plain_columns(plan, operands)
    states = scan(plan, operands, _apart(plan, sums), initial, wants_final=False, has_normalisers=True).states
    o, exact, denominator = backend(plan).outputs(
        plan, operands, columns, states, has_initial=True,
        exact=options.save_output and operands.v.dtype != torch.float32,
    )  # fmt: skip
    return Outputs(
        o,
        denominator=or_empty(denominator, o),
        S=or_empty(None, o),
        z=or_empty(None, o),
        states=states if options.save_states else or_empty(None, o),
        gates=or_empty(None, o),
        exact=or_empty(exact, o),
    )


def share_gradient_sums(do: Tensor, inputs: Inputs, saved: Saved, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """What each chunk's queries add to the state's gradient, and that of the incoming one from them alone."""
    plan = make_plan(inputs, options)
    operands = prepare(plan, inputs, None, packs=True)
    gradient, columns = output_gradient(plan, operands, do, saved, Columns(), decayed=True)
    sums = query_sums(plan, operands, columns, gradient, wants_initial=True, fills=True)
    found = scan(plan, operands, _apart(plan, sums), None, wants_final=True, has_normalisers=True, reverse=True)
    dS, dz = untile_state(plan, operands, found.final, gradient=True)
    assert dS is not None
    assert dz is not None
    return sums, dS, dz


def share_gradients(incoming: Incoming, inputs: Inputs, saved: Saved, sums: Tensor, options: Options) -> Gradients:
    """Gradients of all inputs but the state that comes in."""
    plan, states = make_plan(inputs, options), present(saved.states)
    operands = prepare(plan, inputs, None, packs=True)
    columns = Columns()
    if states is None:
        columns, keys = key_sums(plan, operands, wants_normaliser=True, wants_final=False)
        initial = tile_state(plan, operands, inputs.S, inputs.z)
        states = scan(plan, operands, keys, initial, wants_final=False, has_normalisers=True).states
    gradient, columns = output_gradient(plan, operands, incoming.do, saved, columns, decayed=True)
    final = tile_state(plan, operands, incoming.dS, incoming.dz, gradient=True)
    after: Scan = scan(
        plan, operands, _apart(plan, sums), final, wants_final=False, has_normalisers=True,
        others=states if plan.gated else None, reverse=True,
    )  # fmt: skip
    dq, dk, dv, q_along, k_along = backend(plan).gradients(
        plan, operands, columns, gradient, states, after.states, has_initial=True, has_final=True, wants_values=True
    )
    dlog_g = gate_gradient(plan, operands, q_along, k_along, after.products) if plan.gated else None
    doffset = offset_gradient(plan, q_along) if plan.offset else None
    q, k, v = (gather_heads(dx, x.shape[2], 2).to(x.dtype) for dx, x in zip((dq, dk, dv), inputs[:3], strict=True))
    return Gradients(q, k, v, *(or_empty(x, dq, torch.float32) for x in (dlog_g, None, None, doffset)))


def _apart(plan: Plan, sums: Tensor) -> Tensor:
    """Sums that a scan may write to: it works in place where states are of their dtype."""
    return sums.clone() if sums.dtype == plan.dtype else sums
