"""The backend of every GPU at p <= 2: chunks' sums, outputs, and gradients of queries, keys and values, in Triton.

What a chunk gives is computed here at every p.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from zoo.kernels.launch import launcher
from zoo.kernels.power.heads import separate_gradients
from zoo.kernels.power.triton.configs import LaunchSizes
from zoo.kernels.power.triton.key_gradient import key_gradient_kernel
from zoo.kernels.power.triton.linear_sums import linear_sums_kernel
from zoo.kernels.power.triton.output import output_kernel
from zoo.kernels.power.triton.plan import Plan
from zoo.kernels.power.triton.prepare import Columns, Operands, OutputGradient, Summands, Weighted, room
from zoo.kernels.power.triton.query_gradient import query_gradient_kernel
from zoo.kernels.power.triton.shared_gradient import shared_gradient_kernel, shared_scores_kernel
from zoo.kernels.power.triton.states import add_normalisers
from zoo.kernels.power.triton.sums import state_sums_kernel
from zoo.kernels.power.triton.value_gradient import value_gradient_kernel

__all__ = [
    "OF_OFFSETS", "Given", "fill_outputs", "gradients", "key_gradient", "linear_sums", "outputs", "query_gradient",
    "room_for_along", "room_for_outputs", "sums", "value_gradient",
]  # fmt: skip

OF_OFFSETS = 2  # of products of queries with their gradients: behind the chunk's part and the states'
SHARED_BLOCK = 64  # at most, tokens of gradients that heads share
COLUMNS = 128  # of values of several heads, that a product of sums takes at p = 1


def linear_sums(
    plan: Plan, operands: Operands, weighted: Weighted, dtype: torch.dtype, *, has_normaliser: bool
) -> Tensor:
    """As `sums`, at p = 1."""
    x, y, weights, delta, repeats = weighted
    launch, states = plan.blocks.sums, plan.heads.state
    found = room(*plan.state_shape, like=y, dtype=dtype)
    together = 1
    if y.shape[2] == states and not has_normaliser:
        together = math.gcd(states // x.shape[2], max(1, COLUMNS // plan.V))
    warps = max(launch.warps, plan.K * plan.V * together // 4096)  # of 128 sums a thread
    launcher(linear_sums_kernel)[(states // together, plan.slots)](
        x, y, operands.or_nothing(weights), operands.or_nothing(delta), found, operands.bounds,
        plan.tokens, plan.C, plan.layout.rows, x.shape[2], y.shape[2], states, repeats,
        K=plan.K, V=plan.V, HEADS=together, BLOCK=launch.block, WEIGHTED=weights is not None,
        HAS_NORMALISER=has_normaliser, HAS_DELTA=delta is not None, PACKED=plan.packed, PRECISION=plan.precision,
        num_warps=warps, num_stages=launch.stages,
    )  # fmt: skip
    return found


def sums(plan: Plan, operands: Operands, summands: Summands, dtype: torch.dtype, *, has_normaliser: bool) -> Tensor:
    """What chunks add to the state `[slots, Hs, rows (V + 1)]`, in this dtype, to z if has_normaliser; at p = 2."""
    x, decayed, y, _ = summands
    layout, blocks, launch, states = plan.layout, plan.blocks, plan.blocks.sums, plan.heads.state
    found = room(*plan.state_shape, like=y, dtype=dtype)
    launcher(state_sums_kernel)[(triton.cdiv(layout.outers, blocks.outer), plan.slots, states)](
        x, decayed, y, found, operands.bounds, plan.tokens, plan.C, layout.rows,
        x.shape[1], y.shape[2], states, decayed.shape[1] // states,
        K=plan.K, V=plan.V, P=plan.p, OUTER=blocks.outer, BLOCK=launch.block,
        PACKED=plan.packed, PRECISION=plan.precision, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    if has_normaliser:
        add_normalisers(plan, operands, found, summands)
    return found


def outputs(
    plan: Plan, operands: Operands, columns: Columns, states: Tensor | None, *, has_initial: bool, exact: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """o `[B, T, Ho, V]`, if exact the same in float32, and if normalised the denominators `[B, T, Ho]` in float32.

    Args:
        plan: the call's.
        operands: the call's.
        columns: at p >= 2 of both where there are states, of keys at least.
        states: before the chunks `[slots, Hs, rows (V + 1)]`, if there are any.
        has_initial: whether sequences' first chunks have states, too.
        exact: whether o is wanted in float32 as well.
    """
    return fill_outputs(plan, operands, columns, states, Given(), has_initial=has_initial, exact=exact)


def _keys(plan: Plan, operands: Operands, columns: Columns) -> Tensor:
    """As `start_of_keys` takes them."""
    return operands.k if plan.p == 1 else operands.or_nothing(columns.keys)


class Given(NamedTuple):
    """What states give to queries, float32, with neither decay nor scale, where that is known."""

    y: Tensor | None = None  # [B, T, Ho, V]
    total: Tensor | None = None  # of the normaliser, at p >= 3 [B, T, Ho, 1]


def room_for_outputs(plan: Plan, operands: Operands, *, exact: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What `outputs` returns, not written yet."""
    o = operands.v.new_empty(plan.batch, plan.tokens, plan.heads.output, plan.V)
    exact_o = torch.empty_like(o, dtype=torch.float32) if exact else None
    return o, exact_o, o.new_empty(o.shape[:3], dtype=torch.float32) if plan.normalize else None


def fill_outputs(
    plan: Plan, operands: Operands, columns: Columns, states: Tensor | None, given: Given, *,
    has_initial: bool, exact: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """As `outputs`, with what states give."""
    heads, layout, launch = plan.heads, plan.layout, plan.blocks.output
    o, exact_o, denominator = room_for_outputs(plan, operands, exact=exact)
    blocks = plan.programs(launch.block)
    launcher(output_kernel)[(blocks * heads.output * plan.slots,)](
        operands.q, operands.or_nothing(columns.queries), _keys(plan, operands, columns), operands.v,
        operands.gates, operands.gates_low, operands.or_nothing(states), *map(operands.or_nothing, given),
        o, operands.or_nothing(exact_o), operands.or_nothing(denominator), operands.offset, operands.bounds,
        plan.tokens, plan.C, layout.rows, plan.scale,
        *heads, heads.state, heads.output, blocks,
        K=plan.K, V=plan.V, P=plan.p, INNER=layout.inner, BLOCK=launch.block, KEYS=launch.other,
        NORMALIZE=plan.normalize, EXACT=exact, GATED=plan.gated, EXACT_GATES=plan.exact_gates,
        HAS_STATES=states is not None, GIVEN=given.y is not None, HAS_INITIAL=has_initial, OFFSET=plan.offset,
        PACKED=plan.packed, PRECISION=plan.precision, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return o, exact_o, denominator


def gradients(
    plan: Plan, operands: Operands, columns: Columns, gradient: OutputGradient,
    states: Tensor | None, dstates: Tensor | None, *, has_initial: bool, has_final: bool, wants_values: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq `[B, T, Ho, K]`, dk and dv `[B, T, Hs, K or V]`, and products of the former two with q and k over p.

    dq and dk have fewer heads, those of q and k, where that is cheaper. The products are `[2, slots, Ho or Hs, C]`, and
    empty if not gated: the chunk's part and the states'.

    Args:
        plan: the call's.
        operands: the call's.
        columns: at p >= 2 of both where there are states, of keys at least.
        gradient: the output's.
        states: as in `outputs`.
        dstates: gradients of the states after the chunks `[slots, Hs, rows (V + 1)]`, if there are any.
        has_initial: as in `outputs`.
        has_final: whether a gradient of the state after the last token came in.
        wants_values: whether to compute dv, which is empty otherwise.
    """
    q_along, k_along = room_for_along(plan, operands)
    if plan.shares_pairs:
        common = _shared_scores(plan, operands, gradient)
        side = _Side(operands.q, operands.k, gradient.do, states, first=has_initial)
        dq = _shared_gradient(plan, operands, gradient, common, side, q_along, of_keys=False)
    else:
        dq = query_gradient(plan, operands, columns, gradient, states, None, q_along, has_initial=has_initial)
    if plan.shares_pairs and not has_final:  # whose normaliser counts
        side = _Side(operands.k, operands.q, operands.v, dstates, first=True)
        dk = _shared_gradient(plan, operands, gradient, common, side, k_along, of_keys=True)
    else:
        dk = key_gradient(plan, operands, columns, gradient, dstates, None, k_along, has_final=has_final)
    dv = value_gradient(plan, operands, columns, gradient, dstates, None) if wants_values else operands.nothing
    return dq, dk, dv, q_along, k_along


def room_for_along(plan: Plan, operands: Operands) -> tuple[Tensor, Tensor]:
    """Room for products of queries and keys with their gradients `[2, slots, Ho or Hs, C]`, empty if not gated.

    With offsets that of queries is there in any case, and one longer: `OF_OFFSETS` is their gradient, zeros at first,
    since not all tokens that a chunk has room for exist.
    """
    shapes = ((2, plan.slots, count, plan.C) for count in (plan.heads.output, plan.heads.state))
    q_along, k_along = (operands.q.new_empty(x if plan.gated else (0,), dtype=torch.float32) for x in shapes)
    if plan.offset:
        shape = (OF_OFFSETS + 1, plan.slots, plan.heads.output, plan.C)
        q_along = torch.zeros(shape, dtype=torch.float32, device=operands.q.device)
    return q_along, k_along


class _Shared(NamedTuple):
    """What gradients of queries and of keys that heads share have in common."""

    dscores: Tensor  # of all heads [slots, Hq, C, C]
    pairs: Tensor  # each head's sums of scores times their gradients [2, blocks, slots, Ho, C], empty if not gated


def _shared_launch(plan: Plan) -> LaunchSizes:
    """Tokens of a program, and of what it meets at a time."""
    block = min(SHARED_BLOCK, plan.blocks.query_gradient.block)
    return LaunchSizes(block, block, 4, 3 if plan.dtype == torch.bfloat16 else 2)


def _shared_scores(plan: Plan, operands: Operands, gradient: OutputGradient) -> _Shared:
    heads, launch = plan.heads, _shared_launch(plan)
    blocks = plan.programs(launch.block)
    dscores = room(plan.slots, heads.query, plan.C, plan.C, like=operands.q, dtype=plan.dtype)
    shape = (2, blocks, plan.slots, heads.output, plan.C) if plan.gated else (0,)
    pairs = room(*shape, like=operands.q, dtype=torch.float32)
    launcher(shared_scores_kernel)[(blocks * blocks * heads.query * plan.slots,)](
        operands.q, operands.k, operands.v, gradient.do, gradient.factors, operands.gates, operands.gates_low,
        dscores, pairs, operands.bounds,
        plan.tokens, plan.C, heads.query, heads.value, heads.output, heads.output // heads.query, blocks, plan.slots,
        K=plan.K, V=plan.V, BLOCK=launch.block, GATED=plan.gated, EXACT_GATES=plan.exact_gates,
        PACKED=plan.packed, PRECISION=plan.precision, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return _Shared(dscores, pairs)


class _Side(NamedTuple):
    """What a gradient that heads share is made of besides: of queries, or of keys."""

    x: Tensor  # [B, T, Hx, K], whose gradient is wanted
    others: Tensor  # what it meets [B, T, Hx, K]
    own: Tensor  # what comes with x for each head [B, T, H, V]
    states: Tensor | None  # before the chunks, or gradients of those after them
    first: bool  # whether the first chunks of its direction have states


def _shared_gradient(
    plan: Plan, operands: Operands, gradient: OutputGradient, common: _Shared, side: _Side, along: Tensor, *,
    of_keys: bool,
) -> Tensor:  # fmt: skip
    """dx `[B, T, Hx, K]`, and each head's part of its product with x: see `shared_gradient_kernel`."""
    dx, shared, launch = torch.empty_like(side.x), plan.heads.output // side.x.shape[2], _shared_launch(plan)
    blocks = plan.programs(launch.block)
    launcher(shared_gradient_kernel)[(blocks * side.x.shape[2] * plan.slots,)](
        side.x, side.others, side.own, gradient.factors, operands.gates, operands.gates_low, common.dscores,
        common.pairs, operands.or_nothing(side.states), dx, along, operands.bounds,
        plan.tokens, plan.C, plan.layout.rows, side.x.shape[2], side.own.shape[2], shared, blocks, plan.slots,
        K=plan.K, V=plan.V, ROOM=triton.next_power_of_2(shared), BLOCK=launch.block, OF_KEYS=of_keys,
        GATED=plan.gated, EXACT_GATES=plan.exact_gates, HAS_STATES=side.states is not None, FIRST=side.first,
        PACKED=plan.packed, PRECISION=plan.precision, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return dx


def query_gradient(
    plan: Plan, operands: Operands, columns: Columns, gradient: OutputGradient, states: Tensor | None,
    given: Tensor | None, along: Tensor, *, has_initial: bool,
) -> Tensor:  # fmt: skip
    """dq `[B, T, Ho, K]`, and its product with q; given: what states give it over p `[B, T, Ho, K]`, where known."""
    heads, layout, launch = plan.heads, plan.layout, plan.blocks.query_gradient
    dq, blocks = separate_gradients(operands.q, heads.output), plan.programs(launch.block)
    launcher(query_gradient_kernel)[(blocks * heads.output * plan.slots,)](
        operands.q, operands.or_nothing(columns.queries), _keys(plan, operands, columns), operands.v, gradient.do,
        operands.or_nothing(gradient.delta), gradient.factors, operands.gates, operands.gates_low,
        operands.or_nothing(states), operands.or_nothing(given), dq, along, operands.offset, operands.bounds,
        plan.tokens, plan.C, layout.rows, *heads, heads.state, heads.output, blocks, plan.slots,
        K=plan.K, V=plan.V, P=plan.p, INNER=layout.inner, BLOCK=launch.block, KEYS=launch.other,
        NORMALIZE=plan.normalize, GATED=plan.gated, EXACT_GATES=plan.exact_gates,
        HAS_STATES=states is not None, GIVEN=given is not None, HAS_INITIAL=has_initial, OFFSET=plan.offset,
        PACKED=plan.packed, PRECISION=plan.precision, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return dq


def key_gradient(
    plan: Plan, operands: Operands, columns: Columns, gradient: OutputGradient, dstates: Tensor | None,
    given: Tensor | None, along: Tensor, *, has_final: bool,
) -> Tensor:  # fmt: skip
    """dk `[B, T, Hs, K]`, and its product with k; given as in `query_gradient`."""
    heads, layout, launch = plan.heads, plan.layout, plan.blocks.key_gradient
    dk, blocks = separate_gradients(operands.k, heads.state), plan.programs(launch.block)
    launcher(key_gradient_kernel)[(blocks * heads.state * plan.slots,)](
        operands.q, operands.k, operands.or_nothing(columns.keys), operands.v, gradient.do,
        operands.or_nothing(gradient.delta), gradient.factors, operands.gates, operands.gates_low,
        operands.or_nothing(dstates), operands.or_nothing(given), dk, along, operands.offset, operands.bounds,
        plan.tokens, plan.C, layout.rows, *heads, heads.state, heads.output, blocks, plan.slots,
        K=plan.K, V=plan.V, P=plan.p, INNER=layout.inner, BLOCK=launch.block, QUERIES=launch.other,
        NORMALIZE=plan.normalize, HAS_NORMALISER=plan.normalize or has_final, GATED=plan.gated,
        EXACT_GATES=plan.exact_gates, HAS_STATES=dstates is not None, GIVEN=given is not None, OFFSET=plan.offset,
        PACKED=plan.packed, PRECISION=plan.precision, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return dk


def value_gradient(
    plan: Plan, operands: Operands, columns: Columns, gradient: OutputGradient, dstates: Tensor | None,
    given: Tensor | None,
) -> Tensor:  # fmt: skip
    """dv `[B, T, Hs, V]`; given: what states' gradients give it `[B, T, Hs, V]`, where that is known."""
    heads, layout, launch = plan.heads, plan.layout, plan.blocks.value_gradient
    dv, blocks = separate_gradients(operands.v, heads.state), plan.programs(launch.block)
    launcher(value_gradient_kernel)[(blocks * heads.state * plan.slots,)](
        operands.q, operands.k, operands.or_nothing(columns.keys), gradient.do, gradient.factors, operands.gates,
        operands.gates_low, operands.or_nothing(dstates), operands.or_nothing(given), dv, operands.offset,
        operands.bounds,
        plan.tokens, plan.C, layout.rows,
        heads.query, heads.key, heads.state, heads.output, blocks,
        K=plan.K, V=plan.V, P=plan.p, BLOCK=launch.block, QUERIES=launch.other,
        GATED=plan.gated, EXACT_GATES=plan.exact_gates, HAS_STATES=dstates is not None, GIVEN=given is not None,
        OFFSET=plan.offset, PACKED=plan.packed, PRECISION=plan.precision, num_warps=launch.warps,
        num_stages=launch.stages,
    )  # fmt: skip
    return dv
