"""The forward pass: what chunks add to the state, the states between them, the output."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from zoo.kernels.launch import launcher
from zoo.kernels.power.triton.hopper import passes
from zoo.kernels.power.triton.hopper.launches import chunk_sums
from zoo.kernels.power.triton.output import output_kernel
from zoo.kernels.power.triton.problem import Columns, Problem
from zoo.kernels.power.triton.scan import scan_kernel
from zoo.kernels.power.triton.sums import normaliser_sums_kernel, state_sums_kernel

__all__ = ["Output", "add_up", "add_up_normalisers", "clear_normalisers", "forward", "scan", "states_before"]

SCAN_BLOCK = 1024
OUTERS = 16  # outer monomials that meet a block of tokens at once in the normaliser's products; a dot takes 16 at least


def add_up(problem: Problem, x: Columns, y: Tensor, *, exact: bool) -> Tensor:
    """Chunks' `sum decay m(x) y^T` for y `[B, T, Hy, V]`: S's part of `[slots, Hs, rows (V + 1)]`.

    exact: in float32, for a state that is returned; else in the products' dtype.
    """
    heads, chunks, layout, config = problem.heads, problem.chunks, problem.layout, problem.config
    if problem.hopper:
        return chunk_sums(
            x.plain, x.decayed, y.to(problem.dtype), problem.tables[0], heads.state, layout.rows, problem.packed,
            torch.float32 if exact else problem.dtype,
        )  # fmt: skip
    sums = problem.states(torch.float32 if exact else problem.dtype)
    launch, base = config.sums, 0
    for inner, prefix in enumerate(layout.prefixes):
        grid = (triton.cdiv(prefix, config.outer), chunks.slots, heads.state)
        launcher(state_sums_kernel)[grid](
            x.plain, x.decayed, y, sums, problem.tables[0], layout.channels,
            chunks.tokens, chunks.size, layout.outers, layout.rows, base, inner, prefix,
            x.plain.shape[1], y.shape[2], heads.state, x.decayed.shape[1] // heads.state,
            K=problem.K, V=problem.V, P=problem.p, INNER=layout.inner, OUTER=config.outer, BLOCK=launch.block,
            PACKED=problem.packed, PRECISION=problem.precision,
            num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
        base += prefix * layout.inner
    return sums


def add_up_normalisers(problem: Problem, sums: Tensor, x: Columns, delta: Tensor | None) -> None:
    """Fill z's part of `sums` with `sum decay m(x)`, times -delta `[slots, Ho, C]` if there is one."""
    heads, chunks, layout, launch = problem.heads, problem.chunks, problem.layout, problem.config.sums
    # Products of degree 2 are so few that one launch takes all.
    width, prefixes = (problem.K, (problem.K,)) if problem.p == 2 else (layout.inner, layout.prefixes)
    base = 0
    for inner, prefix in enumerate(prefixes):
        outers = min(64, max(16, triton.next_power_of_2(prefix)))
        launcher(normaliser_sums_kernel)[(triton.cdiv(prefix, outers), chunks.slots, heads.state)](
            x.plain, x.decayed, problem.or_nothing(delta), sums, problem.tables[0], layout.channels,
            chunks.tokens, chunks.size, layout.outers, layout.rows, base, inner, prefix,
            x.plain.shape[1], heads.state, x.decayed.shape[1] // heads.state,
            K=problem.K, V=problem.V, P=problem.p, INNER=width, TILED=layout.inner, OUTERS=outers, BLOCK=launch.block,
            HAS_DELTA=delta is not None, PACKED=problem.packed, PRECISION=problem.precision,
            num_warps=4, num_stages=2,
        )  # fmt: skip
        base += prefix * layout.inner


def clear_normalisers(problem: Problem, sums: Tensor) -> None:
    """What `add_up_normalisers` fills, where there is nothing to add up but a state beside it."""
    sums[..., problem.layout.rows * problem.V :] = 0


class Scan(NamedTuple):
    """What stands between chunks."""

    states: Tensor  # before each chunk, or gradients after it [slots, Hs, rows (V + 1)]
    final: Tensor | None  # [sequences, Hs, rows (V + 1)], float32
    products: Tensor | None  # of other states with these gradients and the chunks' decay, in parts [slots, Hs, parts]


def scan(
    problem: Problem, sums: Tensor, initial: Tensor | None, *, wants_final: bool, has_normalisers: bool,
    others: Tensor | None = None, reverse: bool = False,
) -> Scan:  # fmt: skip
    """From chunks' sums the states before them, or, reverse, gradients after them; in place where the dtype allows it.

    Args:
        problem: the call's.
        sums: `[slots, Hs, rows (V + 1)]`.
        initial: before the first chunk `[sequences, Hs, rows (V + 1)]`.
        wants_final: whether what stands after the last chunk is wanted as well.
        has_normalisers: whether z's part of sums was filled; without it, that part is left alone.
        others: states before the chunks, to be multiplied with the gradients.
        reverse: backwards in time.
    """
    chunks, size = problem.chunks, sums.shape[-1]
    live = size if has_normalisers else problem.layout.rows * problem.V
    blocks = triton.cdiv(live, SCAN_BLOCK)
    in_place = sums.dtype == problem.dtype
    states = sums if in_place else problem.states(problem.dtype)
    final = products = None
    if wants_final:
        final = problem.gates.new_empty(chunks.sequences, problem.heads.state, size)
    if others is not None:
        products = problem.gates.new_empty(chunks.slots, problem.heads.state, blocks)
    # Few programs wait for memory; many are at its bandwidth.
    ahead = 4 if blocks * problem.heads.state < 512 else 1
    launcher(scan_kernel)[(blocks, chunks.sequences, problem.heads.state)](
        sums, problem.or_nothing(None if in_place else states), problem.gates, problem.or_nothing(initial),
        problem.or_nothing(final), problem.or_nothing(others), problem.or_nothing(products),
        problem.layout.row_weights if products is not None and problem.p > 2 else problem.nothing,
        problem.tables[1], chunks.slots // chunks.sequences, chunks.size, size, live, problem.heads.state,
        blocks,
        BLOCK=SCAN_BLOCK, GATED=problem.gated, HAS_INITIAL=initial is not None, WANTS_FINAL=wants_final,
        REVERSE=reverse, WANTS_PRODUCTS=products is not None,
        WEIGHTED=products is not None and not problem.layout.even, K=problem.K, V=problem.V, P=problem.p,
        INNER=problem.layout.inner, PACKED=problem.packed, IN_PLACE=in_place, AHEAD=ahead,
        PRECISION=problem.precision, num_warps=4,
    )  # fmt: skip
    return Scan(states, final, products)


def states_before(
    problem: Problem, initial: Tensor | None, *, wants_normaliser: bool, wants_final: bool
) -> tuple[Tensor, Tensor | None]:
    """The state before each chunk `[slots, Hs, rows (V + 1)]`, and the final one where it is wanted."""
    keys = problem.keys_to_end(exact=wants_final)
    sums = add_up(problem, keys, problem.v, exact=wants_final)
    if wants_normaliser or wants_final:
        add_up_normalisers(problem, sums, keys, None)
    elif initial is not None:
        clear_normalisers(problem, sums)
    has_normalisers = wants_normaliser or wants_final or initial is not None
    scanned = scan(problem, sums, initial, wants_final=wants_final, has_normalisers=has_normalisers)
    return scanned.states, scanned.final


class Output(NamedTuple):
    """What the forward pass gives."""

    o: Tensor  # [B, T, Ho, V], in the dtype of v
    exact: Tensor | None  # the same in float32, where asked for
    denominator: Tensor | None  # [B, T, Ho], float32, if normalised
    S: Tensor | None  # packed, where asked for
    z: Tensor | None
    states: Tensor | None  # before each chunk, in the tiled layout, where there are several


def forward(
    problem: Problem, S: Tensor | None, z: Tensor | None, *, normalize: bool, return_state: bool, exact: bool
) -> Output:
    """The output and, where asked for, the same in float32 and the state after the last token."""
    initial = None if S is None or z is None else problem.from_packed(S, z)
    states, final = None, None
    has_states = problem.has_states(initial)
    if has_states or return_state:
        states, final = states_before(problem, initial, wants_normaliser=normalize, wants_final=return_state)
    if not has_states:
        states = None
    attend = passes.outputs if problem.fused else _outputs
    o, exact_o, denominator = attend(problem, states, exact, normalize=normalize, has_initial=initial is not None)
    S_out, z_out = (None, None) if final is None else problem.to_packed(final)
    return Output(o, exact_o, denominator, S_out, z_out, states)


def _outputs(
    problem: Problem, states: Tensor | None, exact: bool, *, normalize: bool, has_initial: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    heads, chunks, layout, launch = problem.heads, problem.chunks, problem.layout, problem.config.output
    B, T = problem.q.shape[:2]
    o = problem.v.new_empty(B, T, heads.output, problem.V)
    exact_o = torch.empty_like(o, dtype=torch.float32) if exact else None
    denominator = o.new_empty(B, T, heads.output, dtype=torch.float32) if normalize else None
    given = None
    if states is not None:
        given = problem.outputs_from_states(problem.q, problem.queries, states, heads.output, has_initial)
    blocks = problem.blocks(launch.block)
    launcher(output_kernel)[(blocks * heads.output * chunks.slots,)](
        problem.q, problem.queries, problem.keys, problem.v, problem.gates, problem.gates_low,
        problem.or_nothing(states), problem.or_nothing(given),
        o, problem.or_nothing(exact_o), problem.or_nothing(denominator), problem.tables[0], layout.channels,
        layout.weights,
        T, chunks.size, layout.outers, layout.rows, problem.scale,
        *heads, heads.state, heads.output, blocks,
        K=problem.K, V=problem.V, P=problem.p, INNER=layout.inner, OUTERS=OUTERS, BLOCK=launch.block,
        KEYS=launch.other, NORMALIZE=normalize, EXACT=exact, GATED=problem.gated, EXACT_GATES=problem.exact_gates,
        HAS_STATES=states is not None, GIVEN=given is not None, HAS_INITIAL=has_initial, PACKED=problem.packed,
        PRECISION=problem.precision, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return o, exact_o, denominator
