"""The backend of Hopper GPUs, at p = 2 in bfloat16: as `portable`, and where it is not fused, by it but for states.

The compiler does not know Gluon, so all of it stands inside opaque ops.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.launch import launch
from zoo.kernels.power.heads import separate_gradients
from zoo.kernels.power.triton import portable
from zoo.kernels.power.triton.plan import Plan
from zoo.kernels.power.triton.prepare import Columns, Operands, OutputGradient, Summands, room
from zoo.kernels.power.triton.states import add_normalisers

__all__ = ["gradients", "outputs", "sums"]

WARPS, STAGES = 4, 2
BLOCK = 32 * WARPS  # tokens a program
SUMS_PER_TRIP = 2


def sums(plan: Plan, operands: Operands, summands: Summands, dtype: torch.dtype, *, has_normaliser: bool) -> Tensor:
    """See `portable.sums`."""
    from zoo.kernels.power.triton.hopper.sums import sums_kernel

    x, decayed, y, _ = summands
    found = room(*plan.state_shape, like=y, dtype=dtype)
    x_heads, y_heads, heads, states = x.shape[1], y.shape[2], decayed.shape[1], plan.heads.state
    pairs = plan.K // 16
    launch(
        sums_kernel, (pairs * (pairs + 1) // 4 * (plan.V // 64) * states * plan.slots,),
        (x, decayed, y, found, operands.bounds),
        (plan.tokens, plan.C, plan.layout.rows, x_heads, heads // x_heads, y_heads, heads // y_heads, states,
         heads // states),
        K=plan.K, V=plan.V, PER_TRIP=SUMS_PER_TRIP, PACKED=plan.packed, warps=8,
    )  # fmt: skip
    if has_normaliser:
        add_normalisers(plan, operands, found, summands)
    return found


class _Side(NamedTuple):
    """Queries, which read the states of the past, or keys, which read the states' gradients from the future."""

    x: Tensor  # [B, T, Hx, K]
    columns: Tensor  # the same with tokens last, where there are states [slots, Hx, K, C]
    own: Tensor  # what x meets a state with [B, T, H, V]: gradients of outputs, or values
    other: Tensor  # what x meets in its chunk [B, T, H, K]
    values: Tensor  # and what that comes with [B, T, H, V]
    states: Tensor  # or their gradients [slots, Hs, rows (V + 1)]
    heads: int  # of what x gets: outputs or states
    partners: int  # of the other side
    first: bool  # whether the first chunks of its direction have states
    reverse: bool

    @property
    def has_states(self) -> bool:
        return self.states.numel() > 0


def outputs(
    plan: Plan, operands: Operands, columns: Columns, states: Tensor | None, *, has_initial: bool, exact: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `portable.outputs`."""
    side = _queries(plan, operands, columns, operands.nothing, states, first=has_initial)
    if not plan.fused:
        given = portable.Given(_outputs_from_states(plan, operands, side))
        return portable.fill_outputs(plan, operands, columns, states, given, has_initial=has_initial, exact=exact)
    found = portable.room_for_outputs(plan, operands, exact=exact)
    _attend(plan, operands, side, operands.gates, plan.scale, found)
    return found


def gradients(
    plan: Plan, operands: Operands, columns: Columns, gradient: OutputGradient,
    states: Tensor | None, dstates: Tensor | None, *, has_initial: bool, has_final: bool, wants_values: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `portable.gradients`."""
    queries = _queries(plan, operands, columns, gradient.do, states, first=has_initial)
    keys = _keys(plan, operands, columns, gradient.do, dstates)
    q_along, k_along = portable.room_for_along(plan, operands)
    if not plan.fused:
        dq = portable.query_gradient(
            plan, operands, columns, gradient, states, _gradients_from_states(plan, operands, queries), q_along,
            has_initial=has_initial,
        )  # fmt: skip
        dk = portable.key_gradient(
            plan, operands, columns, gradient, dstates, _gradients_from_states(plan, operands, keys), k_along,
            has_final=has_final,
        )  # fmt: skip
        dv = operands.nothing
        if wants_values:
            given = _outputs_from_states(plan, operands, keys)
            dv = portable.value_gradient(plan, operands, columns, gradient, dstates, given)
        return dq, dk, dv, q_along, k_along
    dq, dk = (separate_gradients(side.x, side.heads) for side in (queries, keys))
    _differentiate(plan, operands, queries, gradient, dq, q_along, has_normaliser=plan.normalize)
    _differentiate(plan, operands, keys, gradient, dk, k_along, has_normaliser=plan.normalize or has_final)
    if not wants_values:
        return dq, dk, operands.nothing, q_along, k_along
    dv = separate_gradients(operands.v, plan.heads.state)
    _attend(plan, operands, keys, gradient.factors, 1.0, (dv, None, None))
    return dq, dk, dv, q_along, k_along


def _queries(
    plan: Plan, operands: Operands, columns: Columns, do: Tensor, states: Tensor | None, *, first: bool
) -> _Side:
    return _Side(
        x=operands.q, columns=operands.or_nothing(None if states is None else columns.queries), own=do,
        other=operands.k, values=operands.v, states=operands.or_nothing(states),
        heads=plan.heads.output, partners=plan.heads.state, first=first, reverse=False,
    )  # fmt: skip


def _keys(plan: Plan, operands: Operands, columns: Columns, do: Tensor, dstates: Tensor | None) -> _Side:
    return _Side(
        x=operands.k, columns=operands.or_nothing(None if dstates is None else columns.keys), own=operands.v,
        other=operands.q, values=do, states=operands.or_nothing(dstates),
        heads=plan.heads.state, partners=plan.heads.output, first=True, reverse=True,
    )  # fmt: skip


def _trips(K: int) -> int:
    """Tiles that a loop's trip takes: more leave the tensor cores idle less often, and take more shared memory."""
    return 4 if K == 64 else 2


def _outputs_from_states(plan: Plan, operands: Operands, side: _Side) -> Tensor | None:
    """`S (c * m(x))` `[B, T, heads, V]` in float32, with neither decay nor scale; see `outputs_kernel`.

    Undefined for sequences' first chunks if those have no states, and None if none has.
    """
    if not side.has_states:
        return None
    from zoo.kernels.power.triton.hopper.outputs import outputs_kernel

    x, blocks = side.x, plan.programs(BLOCK)
    y = x.new_empty(plan.batch, plan.tokens, side.heads, plan.V, dtype=torch.float32)
    launch(
        outputs_kernel, (blocks * (plan.V // 64) * side.heads * plan.slots,),
        (x, side.columns, side.states, y, operands.bounds),
        (plan.tokens, plan.C, plan.layout.rows, x.shape[2], side.heads, plan.heads.state, blocks),
        K=plan.K, V=plan.V, FIRST=side.first, PACKED=plan.packed, TRIPS=_trips(plan.K), STAGES=STAGES, WARPS=WARPS,
        warps=WARPS,
    )  # fmt: skip
    return y


def _gradients_from_states(plan: Plan, operands: Operands, side: _Side) -> Tensor | None:
    """`sum_i x_i (S_i y)` `[B, T, heads, K]` in float32, for y its own `[B, T, Hy, V]`; as `_outputs_from_states`."""
    if not side.has_states:
        return None
    from zoo.kernels.power.triton.hopper.gradients import gradients_kernel

    y, blocks = side.own, plan.programs(BLOCK)
    dx = y.new_empty(plan.batch, plan.tokens, side.heads, plan.K, dtype=torch.float32)
    launch(
        gradients_kernel, (blocks * (plan.K // 64) * side.heads * plan.slots,),
        (y, side.columns, side.states, dx, operands.bounds),
        (plan.tokens, plan.C, plan.layout.rows, y.shape[2], side.x.shape[2], side.heads, plan.heads.state, blocks),
        K=plan.K, V=plan.V, FIRST=side.first, PACKED=plan.packed, TRIPS=_trips(max(plan.K, plan.V)), STAGES=STAGES,
        WARPS=WARPS, warps=WARPS,
    )  # fmt: skip
    return dx


def _attend(
    plan: Plan, operands: Operands, side: _Side, weights: Tensor, scale: float,
    found: tuple[Tensor, Tensor | None, Tensor | None],
) -> None:  # fmt: skip
    """Fill outputs, or gradients of values: see `attend_kernel`; found: as of `portable.outputs`."""
    from zoo.kernels.power.triton.hopper.attend import attend_kernel

    y, exact_y, denominator = found
    states, blocks = plan.heads.state, plan.programs(BLOCK)
    launch(
        attend_kernel, (blocks * side.heads * plan.slots,),
        (side.x, side.columns, side.other, side.values, side.states, operands.gates, weights, y,
         y if exact_y is None else exact_y, operands.gates if denominator is None else denominator, operands.bounds),
        (plan.tokens, plan.C, plan.layout.rows, scale, side.heads, side.heads // states, side.partners // states,
         side.heads // side.x.shape[2], side.partners // side.other.shape[2], side.partners // side.values.shape[2],
         blocks),
        K=plan.K, V=plan.V, HAS_STATES=side.has_states, FIRST=side.first, NORMALIZE=denominator is not None,
        EXACT=exact_y is not None, GATED=plan.gated, REVERSE=side.reverse, PACKED=plan.packed, TRIPS=_trips(plan.K),
        WARPS=WARPS, warps=WARPS,
    )  # fmt: skip


def _differentiate(
    plan: Plan, operands: Operands, side: _Side, gradient: OutputGradient, dx: Tensor, along: Tensor, *,
    has_normaliser: bool,
) -> None:  # fmt: skip
    """Fill gradients dx of queries or keys, and their product with them: see `differentiate_kernel`."""
    from zoo.kernels.power.triton.hopper.differentiate import differentiate_kernel

    states, blocks = plan.heads.state, plan.programs(BLOCK)
    launch(
        differentiate_kernel, (blocks * side.heads * plan.slots,),
        (side.x, side.columns, side.own, side.other, side.values, side.states, operands.gates, gradient.factors,
         operands.or_nothing(gradient.delta), dx, along, operands.bounds),
        (plan.tokens, plan.C, plan.layout.rows, side.heads, side.heads // states, side.partners // states,
         side.heads // side.x.shape[2], side.heads // side.own.shape[2], side.partners // side.other.shape[2],
         side.partners // side.values.shape[2], blocks, plan.slots),
        K=plan.K, V=plan.V, HAS_STATES=side.has_states, FIRST=side.first, NORMALIZE=plan.normalize,
        HAS_NORMALISER=has_normaliser, GATED=plan.gated, REVERSE=side.reverse, PACKED=plan.packed,
        TRIPS=_trips(plan.K), WARPS=WARPS, warps=WARPS,
    )  # fmt: skip
