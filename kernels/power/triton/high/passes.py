"""The backend of p >= 3: as `portable`, but for what chunks add to states, and what states give."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from zoo.kernels.launch import launcher
from zoo.kernels.power.triton import portable
from zoo.kernels.power.triton.configs import LaunchSizes
from zoo.kernels.power.triton.high.gradients import high_gradients_kernel
from zoo.kernels.power.triton.high.outputs import high_outputs_kernel
from zoo.kernels.power.triton.high.sums import high_sums_kernel
from zoo.kernels.power.triton.plan import Plan
from zoo.kernels.power.triton.prepare import Columns, Operands, OutputGradient, Summands, room

__all__ = ["gradients", "outputs", "sums"]

REGISTERS = 64  # of each thread, for a product: more leave no room for two programs beside each other


def _constants(plan: Plan, launch: LaunchSizes, inner: int) -> dict[str, Any]:
    """What all kernels are compiled for; inner: channels of a product."""
    return {
        "K": plan.K, "V": plan.V, "P": plan.p, "INNER": inner, "OUTERS": launch.other,
        "BLOCK": launch.block, "PACKED": plan.packed, "PRECISION": plan.precision,
    }  # fmt: skip


def _channels(plan: Plan, launch: LaunchSizes) -> int:
    """How many channels by all values a product of a program's tokens may have."""
    return max(1, REGISTERS * 32 * launch.warps // (launch.block * plan.V))


def sums(plan: Plan, operands: Operands, summands: Summands, dtype: torch.dtype, *, has_normaliser: bool) -> Tensor:
    """See `portable.sums`."""
    x, decayed, y, delta = summands
    layout, launch, states = plan.layout, plan.blocks.sums, plan.heads.state
    found = room(*plan.state_shape, like=y, dtype=dtype)
    programs = sum(triton.cdiv(prefix, launch.other) for prefix in layout.prefixes)
    launcher(high_sums_kernel)[(programs, plan.slots, states)](
        x, decayed, y, operands.or_nothing(delta), found, operands.bounds, operands.tables.channels,
        plan.tokens, plan.C, layout.outers, layout.rows, x.shape[1], y.shape[2], states, decayed.shape[1] // states,
        **_constants(plan, launch, layout.inner), HAS_NORMALISER=has_normaliser, HAS_DELTA=delta is not None,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return found


def outputs(
    plan: Plan, operands: Operands, columns: Columns, states: Tensor | None, *, has_initial: bool, exact: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `portable.outputs`."""
    given = portable.Given()
    if states is not None:
        given = _outputs_from_states(plan, operands, columns, states, first=has_initial)
    return portable.fill_outputs(plan, operands, columns, states, given, has_initial=has_initial, exact=exact)


def _outputs_from_states(
    plan: Plan, operands: Operands, columns: Columns, states: Tensor, *, first: bool
) -> portable.Given:
    heads, tables, launch = plan.heads, operands.tables, plan.blocks.high_outputs
    y = _room(plan, operands, heads.output, plan.V)
    total = _room(plan, operands, heads.output, 1) if plan.normalize else None
    inner = min(plan.layout.inner, _channels(plan, launch))
    blocks = plan.programs(launch.block)
    launcher(high_outputs_kernel)[(blocks * heads.output * plan.slots,)](
        operands.or_nothing(columns.queries), states, y, operands.or_nothing(total), operands.bounds,
        tables.channels, tables.symmetric, tables.gradient_weights, tables.last_shares,
        plan.tokens, plan.C, plan.layout.outers, plan.layout.rows, heads.query, heads.output, heads.state, blocks,
        **_constants(plan, launch, inner), TILE=plan.layout.inner, FIRST=first, NORMALIZE=plan.normalize,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return portable.Given(y, total)


def _room(plan: Plan, operands: Operands, heads: int, width: int) -> Tensor:
    return room(plan.batch, plan.tokens, heads, width, like=operands.q, dtype=torch.float32)


class _Side(NamedTuple):
    """Queries, which read states, or keys, which read the gradients of states."""

    columns: Tensor  # x with tokens last [slots, Hx, K, C]
    y: Tensor  # what it meets a state with [B, T, Hy, V]: gradients of outputs, or values
    delta: Tensor | None  # of queries, what they meet its normaliser with, negative [slots, Ho, C]
    states: Tensor  # [slots, Hs, rows (V + 1)]
    first: bool  # whether the first chunks of its direction have states


def gradients(
    plan: Plan, operands: Operands, columns: Columns, gradient: OutputGradient,
    states: Tensor | None, dstates: Tensor | None, *, has_initial: bool, has_final: bool, wants_values: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `portable.gradients`."""
    q_along, k_along = portable.room_for_along(plan, operands)
    heads, of_queries, of_keys, of_values = plan.heads, None, None, None
    if states is not None:
        queries = operands.or_nothing(columns.queries)
        side = _Side(queries, gradient.do, gradient.delta, states, first=has_initial)
        of_queries = _room(plan, operands, heads.output, plan.K)
        _gradients_from_states(plan, operands, side, of_queries, None, has_normaliser=plan.normalize)
    if dstates is not None:
        side = _Side(operands.or_nothing(columns.keys), operands.v, None, dstates, first=True)
        of_keys = _room(plan, operands, heads.state, plan.K)
        of_values = _room(plan, operands, heads.state, plan.V) if wants_values else None
        has_normaliser = plan.normalize or has_final
        _gradients_from_states(plan, operands, side, of_keys, of_values, has_normaliser=has_normaliser)
    dq = portable.query_gradient(
        plan, operands, columns, gradient, states, of_queries, q_along, has_initial=has_initial
    )
    dk = portable.key_gradient(plan, operands, columns, gradient, dstates, of_keys, k_along, has_final=has_final)
    dv = operands.nothing
    if wants_values:
        dv = portable.value_gradient(plan, operands, columns, gradient, dstates, of_values)
    return dq, dk, dv, q_along, k_along


def _gradients_from_states(
    plan: Plan, operands: Operands, side: _Side, dx: Tensor, outputs: Tensor | None, *, has_normaliser: bool
) -> None:
    """Fill gradients of x, and outputs if they are wanted: see `high_gradients_kernel`."""
    tables, launch, heads = operands.tables, plan.blocks.high_gradients, dx.shape[2]
    inner = min(plan.K // 2, _channels(plan, launch))  # any channels are neighbours here
    blocks = plan.programs(launch.block)
    launcher(high_gradients_kernel)[(blocks * heads * plan.slots,)](
        side.columns, side.y, operands.or_nothing(side.delta), side.states, dx, operands.or_nothing(outputs),
        operands.bounds, tables.channels, tables.symmetric, tables.gradient_weights,
        plan.tokens, plan.C, plan.layout.outers, plan.layout.rows,
        side.columns.shape[1], side.y.shape[2], heads, plan.heads.state, blocks,
        **_constants(plan, launch, inner), FIRST=side.first, HAS_NORMALISER=has_normaliser,
        HAS_DELTA=side.delta is not None, WANTS_OUTPUTS=outputs is not None,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
