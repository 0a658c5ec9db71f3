"""The passes for p >= 2: errors stretch by stretch, and power attention for what follows from them.

Forward, `o = power attention (q, k, u)` with what is written, `u = beta e`, as values.

Backward, power attention gives the gradients for q, k, gates and state, and that of u as far as outputs read it. What
later keys read of u comes to it from the last token to the first, `d_t = du_t - sum_{j > t} (k_j . k_t)^p w_j`, times
decays, with `w = beta d`: these are the forward pass's errors of du, backwards in time. Then `dv = w`, `dbeta = e . d`,
and reads have the gradient -w. The read of token t is an output of power attention at token t - 1 for the query k_t,
times the gate of t: another backward pass of it, one token longer for what the first one reads of a state.

Tokens of float16 are computed with in float32: what is written would lose digits that a state keeps.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels.delta.call import Gradients, Incoming, Inputs, Options, Outputs, Saved
from zoo.kernels.delta.triton.errors import inverse_kernel, join_kernel, read_kernel, solve_kernel, write_kernel
from zoo.kernels.launch import Launch, compile_together, launcher, rehearsal, unseen
from zoo.kernels.power import call as power
from zoo.kernels.power.call import or_empty
from zoo.kernels.power.triton import op as power_op
from zoo.kernels.power.triton import passes
from zoo.kernels.power.triton.layout import make_layout, read_tables
from zoo.kernels.power.triton.plan import Plan, make_plan
from zoo.kernels.power.triton.prepare import LOWEST_GATE, columns_to_end, prepare, room, tile_state
from zoo.kernels.recording import Recorder
from zoo.kernels.triton_support import INTERPRETED

__all__ = ["backward", "fake_saved", "find_errors", "forward"]


class Errors(NamedTuple):
    """What a pass over the stretches gives, both `[B, T, Hv, V]`."""

    errors: Tensor  # float32
    written: Tensor  # the rate times them, in the products' dtype


class _Sizes(NamedTuple):
    """Tokens and warps of the kernels of `errors.py`."""

    stretch: int = 512  # L
    chunk: int = 64  # C
    read_block: int = 64
    read_warps: int = 4
    most_shares: int = 4
    solve_meets: int = 128
    solve_warps: int = 4
    write_block: int = 128
    write_warps: int = 4
    programs: int = 256  # of a launch, about twice as many as a GPU runs side by side


_SMALL = _Sizes(stretch=32, chunk=16, read_block=16, solve_meets=32, write_block=16)
_FLOAT = _Sizes(chunk=32, read_block=32, solve_meets=32, write_block=32, write_warps=8)
_WIDE = _Sizes(write_warps=8, solve_warps=8)


def _sizes(k: Tensor, v: Tensor) -> _Sizes:
    if INTERPRETED:
        return _SMALL
    if k.dtype != torch.bfloat16:
        return _FLOAT
    return _WIDE if max(k.shape[-1], v.shape[-1]) > 64 else _Sizes()


def fake_saved(inputs: Inputs, options: Options) -> Saved:
    """What `forward` saves, without numbers."""
    saves = options.save_errors and inputs.beta is not None
    errors = torch.empty(inputs.v.shape, dtype=torch.float32, device=inputs.v.device) if saves else None
    return Saved(or_empty(errors, inputs.q), or_empty(None, inputs.q))


def _plan(k: Tensor, v: Tensor, log_g: Tensor | None, cu_seqlens: Tensor | None, p: int, sizes: _Sizes) -> Plan:
    """Stretches as chunks of a plan of power attention that is no other backend's, with narrower tiles."""
    inputs = power.Inputs(k, k, v, log_g, cu_seqlens=cu_seqlens)
    plan = make_plan(inputs, power.Options(p, 1.0, normalize=False, use_triton=True))
    L, (B, T) = sizes.stretch, k.shape[:2]
    slots = B * -(-T // L) if cu_seqlens is None else -(-T // L) + cu_seqlens.shape[0] - 1
    layout = make_layout(plan.K, p, min(plan.K, 64) if p == 2 else max(16, plan.K // 2))
    return plan._replace(hopper=False, C=L, slots=slots, layout=layout)


def find_errors(
    k: Tensor, v: Tensor, log_g: Tensor | None, beta: Tensor, S: Tensor | None, cu_seqlens: Tensor | None, p: int
) -> Errors:
    """The errors of all tokens, and what is written."""
    sizes = _sizes(k, v)
    plan = _plan(k, v, log_g, cu_seqlens, p, sizes)
    (_, keys, heads), L, C, K, V = plan.heads, plan.C, sizes.chunk, plan.K, plan.V
    inputs = power.Inputs(k, k, v, log_g, S, None if S is None else S.new_zeros(S.shape[:-1]), cu_seqlens=cu_seqlens)
    operands = prepare(plan, inputs, None, packs=S is not None)
    nothing, rows = operands.nothing, plan.layout.rows
    errors = room(*v.shape, like=v, dtype=torch.float32)
    written = room(*v.shape, like=v, dtype=plan.dtype)
    count = -(-min(L, plan.tokens) // C)  # blocks of a stretch's tokens
    inverses = room(plan.slots, heads, (L // C) * (L // C + 1) // 2 * C * C, like=v,
                    dtype=torch.float16 if plan.dtype == torch.bfloat16 else torch.float32)  # fmt: skip
    gates: dict[str, Any] = {"GATED": plan.gated, "EXACT_GATES": plan.exact_gates}
    common: dict[str, Any] = {"PACKED": plan.packed, "PRECISION": plan.precision}
    tensors = (operands.k, operands.gates, operands.gates_low, beta, inverses, operands.bounds)
    launcher(inverse_kernel)[(count, plan.slots, heads)](
        *tensors, plan.tokens, L, keys, heads,
        C=C, K=K, P=p, LEVELS=C.bit_length() - 1, **gates, EXACT=k.dtype == torch.float32, **common, num_warps=4,
    )  # fmt: skip
    if count > 1:
        launcher(join_kernel)[(count - 1, plan.slots, heads)](
            *tensors, plan.tokens, L, keys, heads,
            C=C, K=K, P=p, **gates, **common, num_warps=4, num_stages=2,
        )  # fmt: skip

    stretches = -(-plan.tokens // L)  # at most, of a sequence
    together = heads * (1 if plan.packed else plan.batch)  # what is worked on side by side
    has_initial, has_states = S is not None, S is not None or stretches > 1
    shares = max(1, min(sizes.most_shares, sizes.programs // (together * (L // sizes.read_block))))
    columns, decayed = columns_to_end(plan, operands, exact=False) if has_states else (None, None)
    sequences, order = _by_length(operands.sequence_slots) if plan.packed else (nothing, None)
    carried = states = reads = nothing
    if has_states:
        with_states = plan.sequences if has_initial else _longer(plan, 1)
        states = room(with_states, heads, rows, V, like=v, dtype=plan.dtype)
        carried = room(with_states, heads, rows, V, like=v, dtype=torch.float32)
        reads = room(with_states, heads, shares, L, V, like=v, dtype=torch.float32)
    tables = read_tables(plan.layout, v.device) if p > 2 else operands.tables
    weights, ones = (tables.weights, tables.weights.new_ones(plan.layout.outers)) if p > 2 else (nothing, nothing)
    if S is not None:
        tiled = tile_state(plan, operands, S if order is None else S[order], inputs.z)
        assert tiled is not None
        carried.copy_(tiled[..., : rows * V].view_as(carried))
        states.copy_(carried * read_tables(plan.layout, v.device).row_weights[:, None])
    block = max(16, V * together * count // sizes.programs)
    block = min(V, 1 << (block.bit_length() - 1))
    blocks, tiles = -(-min(L, plan.tokens) // sizes.read_block), sum(-(-x // 2) for x in plan.layout.prefixes)
    key_columns = nothing if columns is None else operands.or_nothing(columns.keys)
    of_gates, at = (operands.gates, operands.gates_low), (operands.bounds, sequences)
    of_state = (plan.layout.outers, rows, keys, heads)
    for index in range(stretches):
        there = _longer(plan, index)
        if index > 0 or has_initial:
            launcher(read_kernel)[(blocks * shares, heads, there)](
                operands.k, key_columns, *of_gates, states, reads, *at, tables.channels, ones,
                plan.tokens, L, index, *of_state, blocks,
                K=K, V=V, P=p, INNER=plan.layout.inner, BLOCK=sizes.read_block, SHARES=shares, **gates, **common,
                num_warps=sizes.read_warps, num_stages=3,
            )  # fmt: skip
        launcher(solve_kernel)[(count * (V // block), heads, there)](
            operands.v, beta, inverses, reads, errors, written, *at, plan.tokens, L, index, heads, count,
            C=C, V=V, BLOCK=block, MEETS=sizes.solve_meets, SHARES=shares, HAS_INITIAL=has_initial, **common,
            num_warps=sizes.solve_warps, num_stages=3,
        )  # fmt: skip
        if index + 1 < stretches:
            launcher(write_kernel)[(tiles, heads, _longer(plan, index + 1))](
                key_columns, operands.or_nothing(decayed), *of_gates, written, carried, states, *at, tables.channels,
                weights, plan.tokens, L, index, *of_state,
                K=K, V=V, P=p, INNER=plan.layout.inner, BLOCK=sizes.write_block, HAS_INITIAL=has_initial, **gates,
                **common, num_warps=sizes.write_warps, num_stages=2,
            )  # fmt: skip
    return Errors(errors, written)


def _longer(plan: Plan, index: int) -> int:
    """How many sequences can have a stretch of this index: packed ones have as many whole stretches before it."""
    if not plan.packed or index == 0:
        return plan.sequences
    return min(plan.sequences, plan.tokens // (index * plan.C))


def _by_length(sequence_slots: Tensor) -> tuple[Tensor, Tensor]:
    """Packed sequences, those with most stretches first: slots `[sequences, 2]` of each, and which they are."""
    starts, ends = sequence_slots[:-1], sequence_slots[1:]
    order = (ends - starts).argsort(descending=True, stable=True)
    return torch.stack((starts, ends), 1)[order].contiguous(), order


_errors = Recorder(find_errors)
_prepared: set[Hashable] = set()  # kinds of calls


def _rehearse(inputs: Inputs, options: Options) -> list[Launch]:
    """What a forward pass launches, and the backward pass if anything is saved for one."""
    with FakeTensorMode() as mode, rehearsal() as launches:
        inputs = Inputs._make(None if x is None else mode.from_tensor(x) for x in inputs)
        k, v, log_g, beta, S = inputs.k, inputs.v, inputs.log_g, inputs.beta, inputs.S
        attention, wanted = _attention(inputs, v), _options(options, scale=1.0, return_state=options.return_state)
        passes.forward(attention, wanted)
        if beta is not None:
            find_errors(k, v, log_g, beta, S, inputs.cu_seqlens, options.p)
        if options.save_errors:
            saved = power.Saved(*(or_empty(None, k) for _ in power.Saved._fields))
            passes.backward(power.Incoming(torch.empty_like(v), None, None), attention, saved, wanted)
    return launches


def _prepare(inputs: Inputs, options: Options) -> None:
    """Before the first call of its kind, compile its kernels side by side."""
    plan = make_plan(_attention(inputs, inputs.v), _options(options, scale=1.0, return_state=False))
    kind = (inputs.q.device, plan.heads, plan.K, plan.V, plan.single, *(x is None for x in inputs), *options)
    if kind not in _prepared and not INTERPRETED:
        _prepared.add(kind)
        compile_together(_rehearse(inputs, options), inputs.q.device)


def _attention(inputs: Inputs, written: Tensor) -> power.Inputs:
    """Power attention of what is written."""
    q, k, _, log_g, _, S, cu_seqlens = inputs
    z = None if S is None else S.new_zeros(S.shape[:-1])
    return power.Inputs(q, k, written.to(q.dtype), log_g, S, z, cu_seqlens=cu_seqlens)


def _options(options: Options, *, scale: float, return_state: bool) -> power.Options:
    return power.Options(options.p, scale, normalize=False, use_triton=True, return_state=return_state)


def _wide_enough(inputs: Inputs) -> Inputs:
    if inputs.q.dtype != torch.float16:
        return inputs
    return inputs._replace(q=inputs.q.float(), k=inputs.k.float(), v=inputs.v.float())


def forward(inputs: Inputs, options: Options) -> Outputs:
    """Output, last state and errors, the latter two where they are asked for."""
    dtype, inputs = inputs.v.dtype, _wide_enough(inputs)
    with unseen(inputs.q.device):
        _prepare(inputs, options)
        written, errors = inputs.v, None
        if inputs.beta is not None:
            errors, written = _errors(
                inputs.k, inputs.v, inputs.log_g, inputs.beta, inputs.S, inputs.cu_seqlens, options.p
            )
        wanted = _options(options, scale=options.scale, return_state=options.return_state)
        found = power_op.triton_forward(_attention(inputs, written), wanted)
    errors = errors if options.save_errors else None
    return Outputs(found.o.to(dtype), found.S, or_empty(errors, inputs.q), or_empty(None, inputs.q))


def _backward(do: Tensor, dS: Tensor | None, inputs: power.Inputs, options: power.Options) -> power.Gradients:
    nothing = or_empty(None, inputs.q)
    dz = None if dS is None else dS.new_zeros(dS.shape[:-1])
    saved = power.Saved(nothing, nothing, nothing, nothing)
    return power_op.triton_backward(power.Incoming(do, dS, dz), inputs, saved, options)


def _backwards_in_time(inputs: Inputs, du: Tensor) -> tuple[Tensor | None, ...]:
    """Of `find_errors` what it takes for `d`. What a gate decays lies on its other side."""
    log_g, cu_seqlens = inputs.log_g, inputs.cu_seqlens
    assert inputs.beta is not None
    if log_g is not None:
        log_g = torch.cat((torch.zeros_like(log_g[:, :1]), log_g.flip(1)[:, :-1]), 1)
    if cu_seqlens is not None:
        cu_seqlens = inputs.q.shape[1] - cu_seqlens.flip(0)
    return inputs.k.flip(1), du.flip(1).contiguous(), log_g, inputs.beta.flip(1), None, cu_seqlens


class _Reads(NamedTuple):
    """Reads as outputs of power attention, with a token before each sequence, which writes nothing."""

    at: Tensor  # where each token is [T]
    inputs: power.Inputs
    do: Tensor


def _reads(inputs: Inputs, written: Tensor, dreads: Tensor) -> _Reads:
    q, k, _, log_g, _, _, cu_seqlens = inputs
    T, rows = q.shape[1], 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    at = torch.arange(1, T + 1, device=q.device)
    if cu_seqlens is not None:
        at += torch.searchsorted(cu_seqlens[1:], at - 1, right=True)
        cu_seqlens = cu_seqlens + torch.arange(rows + 1, device=q.device, dtype=cu_seqlens.dtype)

    def place(x: Tensor, at: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], T + rows, *x.shape[2:]).index_copy_(1, at, x)

    if log_g is not None:
        dreads = dreads * log_g.exp()[..., None]
        log_g = place(log_g, at)
    shifted = inputs._replace(q=place(k, at - 1), k=place(k, at), log_g=log_g, cu_seqlens=cu_seqlens)
    return _Reads(at, _attention(shifted, place(written, at)), place(dreads.to(q.dtype), at - 1))


def backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Gradients of all inputs."""
    dtype, inputs = inputs.q.dtype, _wide_enough(inputs)
    do, beta, errors, empty = incoming.do.to(inputs.q.dtype), inputs.beta, saved.errors, or_empty(None, inputs.q)
    with unseen(inputs.q.device):
        of_outputs = _options(options, scale=options.scale, return_state=incoming.dS is not None)
        if beta is None:
            found = _backward(do, incoming.dS, _attention(inputs, inputs.v), of_outputs)
            q, k, v = (x.to(dtype) for x in found[:3])
            return Gradients(q, k, v, found.log_g, empty, found.S)
        written = (errors * beta[..., None].float()).to(inputs.q.dtype)
        found = _backward(do, incoming.dS, _attention(inputs, written), of_outputs)
        d = _errors(*_backwards_in_time(inputs, found.v), options.p)[0].flip(1)
        dv = d * beta[..., None].float()
        reads = _reads(inputs, written, -dv)
        others = _backward(reads.do, None, reads.inputs, _options(options, scale=1.0, return_state=False))
    dk = found.k.float() + others.k.index_select(1, reads.at) + others.q.index_select(1, reads.at - 1)
    log_g = empty
    if inputs.log_g is not None:
        of_reads = (dv * (errors - inputs.v.float())).sum(-1)  # of a gate that is the read's own factor
        log_g = found.log_g + others.log_g.index_select(1, reads.at) + of_reads
        log_g = torch.where(inputs.log_g <= LOWEST_GATE, 0, log_g)
    S = empty if inputs.S is None else found.S + others.S
    dbeta = (errors * d).sum(-1).to(beta.dtype)
    return Gradients(found.q.to(dtype), dk.to(dtype), dv.to(dtype), log_g, dbeta, S)
