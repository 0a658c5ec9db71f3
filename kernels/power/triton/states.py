"""The states between chunks, and their gradients: what chunks add to them, one after the other."""

from typing import NamedTuple

import triton
from torch import Tensor

from zoo.kernels.launch import launcher
from zoo.kernels.power.triton.lower_sums import lower_sums_kernel
from zoo.kernels.power.triton.plan import Plan
from zoo.kernels.power.triton.prepare import Operands, OutputGradient, Summands, room
from zoo.kernels.power.triton.scan import scan_kernel
from zoo.kernels.power.triton.sums import normaliser_sums_kernel

__all__ = ["Scan", "add_lower", "add_normalisers", "clear_normalisers", "scan"]

SCAN_BLOCK = 1024


def add_normalisers(plan: Plan, operands: Operands, sums: Tensor, summands: Summands) -> None:
    """Fill z's part of `sums`; of p = 2."""
    layout, states, (x, decayed, _, delta) = plan.layout, plan.heads.state, summands
    outers = min(64, max(16, triton.next_power_of_2(layout.outers)))
    launcher(normaliser_sums_kernel)[(triton.cdiv(layout.outers, outers), plan.slots, states)](
        x, decayed, operands.or_nothing(delta), sums, operands.bounds,
        plan.tokens, plan.C, layout.outers, layout.rows, x.shape[1], states, decayed.shape[1] // states,
        K=plan.K, V=plan.V, P=plan.p, INNER=layout.inner, OUTERS=outers, BLOCK=plan.blocks.sums.block,
        HAS_DELTA=delta is not None, PACKED=plan.packed, PRECISION=plan.precision, num_warps=4, num_stages=2,
    )  # fmt: skip


def add_lower(
    plan: Plan, operands: Operands, sums: Tensor, decayed: Tensor | None, y: Tensor, gradient: OutputGradient | None, *,
    has_normaliser: bool,
) -> None:  # fmt: skip
    """Fill the rows of `sums` that an offset adds, z's among them if has_normaliser.

    decayed and y are as in `Summands`: of keys and values, or, with the output's gradient, of queries; at p = 1 decayed
    is None.
    """
    heads, of_queries = plan.heads, gradient is not None
    weights = gradient.factors if gradient is not None else operands.left if plan.gated else None
    delta = None if gradient is None else gradient.delta
    gates = (operands.gates, operands.gates_low) if of_queries else (operands.nothing, operands.nothing)
    launcher(lower_sums_kernel)[(plan.slots, heads.state)](
        operands.or_nothing(decayed), y, operands.or_nothing(weights), *gates, operands.or_nothing(delta),
        operands.offset, sums, operands.bounds, plan.tokens, plan.C, plan.layout.rows, heads.query, y.shape[2],
        heads.state, heads.queries_per_state if of_queries else 1,
        K=plan.K, V=plan.V, P=plan.p, BLOCK=plan.blocks.sums.block, OF_QUERIES=of_queries,
        WEIGHTED=weights is not None, GATED=of_queries and plan.gated, EXACT_GATES=plan.exact_gates,
        HAS_NORMALISER=has_normaliser, HAS_DELTA=delta is not None, PACKED=plan.packed, PRECISION=plan.precision,
        num_warps=4, num_stages=2,
    )  # fmt: skip


def clear_normalisers(plan: Plan, sums: Tensor) -> None:
    """z's part of `sums`, where there is nothing to add up but a state beside it."""
    sums[..., plan.layout.rows * plan.V :] = 0


class Scan(NamedTuple):
    """What stands between chunks."""

    states: Tensor  # before each chunk, or gradients after it [slots, Hs, rows (V + 1)]
    final: Tensor | None  # [sequences, Hs, rows (V + 1)], float32
    products: Tensor | None  # of other states with these gradients and the chunks' decay, in parts [slots, Hs, parts]


def scan(
    plan: Plan, operands: Operands, sums: Tensor, initial: Tensor | None, *, wants_final: bool, has_normalisers: bool,
    others: Tensor | None = None, reverse: bool = False,
) -> Scan:  # fmt: skip
    """From chunks' sums the states before them, or, reverse, gradients after them; in place where the dtype allows it.

    Args:
        plan: the call's.
        operands: the call's.
        sums: `[slots, Hs, rows (V + 1)]`.
        initial: before the first chunk `[sequences, Hs, rows (V + 1)]`.
        wants_final: whether what stands after the last chunk is wanted as well.
        has_normalisers: whether z's part of sums was filled; without it, that part is left alone.
        others: states before the chunks, to be multiplied with the gradients.
        reverse: backwards in time.
    """
    layout, heads, size = plan.layout, plan.heads.state, sums.shape[-1]
    live = size if has_normalisers else layout.rows * plan.V
    blocks = triton.cdiv(live, SCAN_BLOCK)
    in_place = sums.dtype == plan.dtype
    states = sums if in_place else room(*plan.state_shape, like=sums, dtype=plan.dtype)
    final = products = None
    if wants_final:
        final = operands.gates.new_empty(plan.sequences, heads, size)
    if others is not None:
        products = operands.gates.new_empty(plan.slots, heads, blocks)
    weighted = products is not None and not layout.even
    # Few programs wait for memory; many are at its bandwidth.
    ahead = 4 if blocks * heads < 512 else 1
    launcher(scan_kernel)[(blocks, plan.sequences, heads)](
        sums, operands.or_nothing(None if in_place else states), operands.gates, operands.gates_low,
        *(operands.or_nothing(x) for x in (initial, final, others, products)),
        operands.tables.row_weights if weighted else operands.nothing, operands.sequence_slots,
        plan.slots // plan.sequences, plan.C, size, live, heads, blocks,
        BLOCK=SCAN_BLOCK, GATED=plan.gated, EXACT_GATES=plan.exact_gates,
        HAS_INITIAL=initial is not None, WANTS_FINAL=wants_final, REVERSE=reverse, WANTS_PRODUCTS=products is not None,
        WEIGHTED=weighted, K=plan.K, V=plan.V, P=plan.p, INNER=layout.inner, PACKED=plan.packed,
        IN_PLACE=in_place, AHEAD=ahead, PRECISION=plan.precision, num_warps=4,
    )  # fmt: skip
    return Scan(states, final, products)
