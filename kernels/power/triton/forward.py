"""The forward pass: what chunks add to the state, the states between them, the output."""

import triton
from torch import Tensor
from torch.library import wrap_triton

from zoo.kernels.power.triton.output import output_kernel
from zoo.kernels.power.triton.problem import Columns, Problem
from zoo.kernels.power.triton.scan import scan_kernel
from zoo.kernels.power.triton.sums import normaliser_sums_kernel, state_sums_kernel

__all__ = ["add_up", "add_up_normalisers", "forward", "scan", "states_before"]

SCAN_BLOCK = 1024
OUTERS = 16  # outer monomials that meet a block of tokens at once in the normaliser's products; a dot takes 16 at least


def add_up(problem: Problem, sums: Tensor, x: Columns, y: Tensor) -> None:
    """Fill S's part of `sums [slots, Hs, rows (V + 1)]` with each chunk's `sum decay m(x) y^T`; y is `[B, T, Hy, V]`."""
    heads, chunks, layout, config = problem.heads, problem.chunks, problem.layout, problem.config
    groups, launch = problem.groups(), config.sums
    wrap_triton(state_sums_kernel)[(groups.shape[0], chunks.slots, heads.state)](
        x.plain, x.decayed, y, sums, problem.tables[0], layout.channels, groups,
        chunks.tokens, chunks.size, layout.outers, layout.rows,
        x.plain.shape[1], y.shape[2], heads.state, x.decayed.shape[1] // heads.state,
        K=problem.K, V=problem.V, P=problem.p, INNER=layout.inner, OUTER=config.outer, BLOCK=launch.block,
        PACKED=problem.packed, PRECISION=problem.precision, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip


def add_up_normalisers(problem: Problem, sums: Tensor, x: Columns, weights: Tensor | None) -> None:
    """Fill z's part of `sums` with `sum decay m(x) weight`; weights are `[B, T, Ho]`, None for ones."""
    heads, chunks, layout, launch = problem.heads, problem.chunks, problem.layout, problem.config.sums
    base = 0
    for inner, prefix in enumerate(layout.prefixes):
        outers = min(64, max(16, triton.next_power_of_2(prefix)))
        wrap_triton(normaliser_sums_kernel)[(triton.cdiv(prefix, outers), chunks.slots, heads.state)](
            x.plain, x.decayed, x.plain if weights is None else weights, sums, problem.tables[0], layout.channels,
            chunks.tokens, chunks.size, layout.outers, layout.rows, base, inner, prefix,
            x.plain.shape[1], heads.state, x.decayed.shape[1] // heads.state,
            K=problem.K, V=problem.V, P=problem.p, INNER=layout.inner, OUTERS=outers, BLOCK=launch.block,
            WEIGHTED=weights is not None, PACKED=problem.packed, PRECISION=problem.precision,
            num_warps=4, num_stages=2,
        )  # fmt: skip
        base += prefix * layout.inner


def scan(
    problem: Problem, states: Tensor, initial: Tensor | None, *, wants_final: bool, reverse: bool
) -> Tensor | None:
    """Turn chunks' sums into the states before them (reverse: after them), in place; returns the final state."""
    chunks, size = problem.chunks, states.shape[-1]
    shape = (chunks.sequences, problem.heads.state, size)
    final = states.new_empty(shape, dtype=problem.gates.dtype) if wants_final else None
    wrap_triton(scan_kernel)[(triton.cdiv(size, SCAN_BLOCK), chunks.sequences, problem.heads.state)](
        states, problem.gates, problem.gates if initial is None else initial, problem.gates if final is None else final,
        problem.tables[1], chunks.slots // chunks.sequences, chunks.size, size, problem.heads.state,
        BLOCK=SCAN_BLOCK, GATED=problem.gated, HAS_INITIAL=initial is not None, WANTS_FINAL=wants_final,
        REVERSE=reverse, PACKED=problem.packed, num_warps=4,
    )  # fmt: skip
    return final


def states_before(
    problem: Problem, initial: Tensor | None, *, wants_normaliser: bool, wants_final: bool
) -> tuple[Tensor, Tensor | None]:
    """The state before each chunk `[slots, Hs, rows (V + 1)]`, and the final one where it is wanted."""
    states = problem.states()
    keys = problem.keys_to_end()
    add_up(problem, states, keys, problem.v)
    if wants_normaliser or wants_final:
        add_up_normalisers(problem, states, keys, None)
    return states, scan(problem, states, initial, wants_final=wants_final, reverse=False)


def forward(
    problem: Problem, S: Tensor | None, z: Tensor | None, *, normalize: bool, return_state: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """o `[B, T, Ho, V]` and its denominator `[B, T, Ho]`, both float32, and the packed S and z where asked for."""
    heads, chunks, layout, launch = problem.heads, problem.chunks, problem.layout, problem.config.output
    B, T = problem.q.shape[:2]
    o = problem.q.new_empty(B, T, heads.output, problem.V, dtype=problem.gates.dtype)
    denominator = problem.q.new_empty((B, T, heads.output) if normalize else (0,), dtype=problem.gates.dtype)
    initial = None if S is None or z is None else problem.from_packed(S, z)
    states, final = problem.gates, None
    has_states = initial is not None or not chunks.single
    if has_states or return_state:
        states, final = states_before(problem, initial, wants_normaliser=normalize, wants_final=return_state)
    blocks = problem.blocks(launch.block)
    wrap_triton(output_kernel)[(blocks * heads.output * chunks.slots,)](
        problem.q, problem.keys, problem.v, problem.gates, problem.gates_low, states, o, denominator,
        problem.tables[0], layout.channels, layout.weights,
        T, chunks.size, layout.outers, layout.rows, problem.scale,
        *heads, heads.state, heads.output, blocks,
        K=problem.K, V=problem.V, P=problem.p, INNER=layout.inner, OUTERS=OUTERS, BLOCK=launch.block,
        KEYS=launch.other, NORMALIZE=normalize, GATED=problem.gated, EXACT_GATES=problem.exact_gates,
        HAS_STATES=has_states, HAS_INITIAL=initial is not None, PACKED=problem.packed, PRECISION=problem.precision,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    if final is None:
        return o, denominator, None, None
    return o, denominator, *problem.to_packed(final)
