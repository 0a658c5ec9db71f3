"""The states between chunks, and their gradients: what chunks add to them, one after the other."""

from typing import NamedTuple

import triton
from torch import Tensor

from zoo.kernels.launch import launcher
from zoo.kernels.power.triton.plan import Plan
from zoo.kernels.power.triton.prepare import Operands, room
from zoo.kernels.power.triton.scan import scan_kernel
from zoo.kernels.power.triton.sums import normaliser_sums_kernel

__all__ = ["Scan", "add_normalisers", "clear_normalisers", "scan"]

SCAN_BLOCK = 1024


def add_normalisers(
    plan: Plan, operands: Operands, sums: Tensor, x: Tensor, decayed: Tensor, delta: Tensor | None
) -> None:
    """Fill z's part of `sums` with `sum decay m(x)`, times -delta `[slots, Ho, C]` if there is one.

    x and decayed are as in `portable.sums`.
    """
    layout, launch, states = plan.layout, plan.blocks.sums, plan.heads.state
    # Products of degree 2 are so few that one launch takes all.
    width, prefixes = (plan.K, (plan.K,)) if plan.p == 2 else (layout.inner, layout.prefixes)
    base = 0
    for inner, prefix in enumerate(prefixes):
        outers = min(64, max(16, triton.next_power_of_2(prefix)))
        launcher(normaliser_sums_kernel)[(triton.cdiv(prefix, outers), plan.slots, states)](
            x, decayed, operands.or_nothing(delta), sums, operands.bounds, operands.tables.channels,
            plan.tokens, plan.C, layout.outers, layout.rows, base, inner, prefix,
            x.shape[1], states, decayed.shape[1] // states,
            K=plan.K, V=plan.V, P=plan.p, INNER=width, TILED=layout.inner, OUTERS=outers, BLOCK=launch.block,
            HAS_DELTA=delta is not None, PACKED=plan.packed, PRECISION=plan.precision, num_warps=4, num_stages=2,
        )  # fmt: skip
        base += prefix * layout.inner


def clear_normalisers(plan: Plan, sums: Tensor) -> None:
    """What `add_normalisers` fills, where there is nothing to add up but a state beside it."""
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
        sums, operands.or_nothing(None if in_place else states), operands.gates,
        *(operands.or_nothing(x) for x in (initial, final, others, products)),
        operands.tables.row_weights if weighted else operands.nothing, operands.sequence_slots,
        plan.slots // plan.sequences, plan.C, size, live, heads, blocks,
        BLOCK=SCAN_BLOCK, GATED=plan.gated, HAS_INITIAL=initial is not None, WANTS_FINAL=wants_final, REVERSE=reverse,
        WANTS_PRODUCTS=products is not None, WEIGHTED=weighted, K=plan.K, V=plan.V, P=plan.p, INNER=layout.inner,
        PACKED=plan.packed, IN_PLACE=in_place, AHEAD=ahead, PRECISION=plan.precision, num_warps=4,
    )  # fmt: skip
    return Scan(states, final, products)
