"""The forward and the backward pass: what is launched, one after the other, on tensors as kernels read them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.kernels.delta.call import Gradients, Incoming, Inputs, Options, Outputs, Saved
from zoo.kernels.delta.triton.gates import gate_sums_kernel
from zoo.kernels.delta.triton.key_gradient import key_gradient_kernel
from zoo.kernels.delta.triton.output import output_kernel
from zoo.kernels.delta.triton.plan import Plan, count_groups, make_plan
from zoo.kernels.delta.triton.prepare import prepare_kernel
from zoo.kernels.delta.triton.scan import Given, History, Maps, Way, room
from zoo.kernels.launch import launcher
from zoo.kernels.power.call import or_empty
from zoo.kernels.power.heads import separate_gradients
from zoo.kernels.power.triton.chunks import pack_chunks

__all__ = ["backward", "forward"]

# exp(-128) is zero in float32, so this stands for -inf; sums of it lose as few digits as may be.
LOWEST_GATE = -128.0


class Operands(NamedTuple):
    """The inputs of a call as kernels read them; what is absent is `nothing`."""

    q: Tensor  # [B, T, Hq, K], contiguous as all of them
    k: Tensor
    v: Tensor
    log_g: Tensor  # [B, T, Hv] or [B, T, Hv, K], float32
    sums: Tensor  # of channels' gates in chunks, of base 2 [B, T, Hv, K]
    beta: Tensor  # [B, T, Hv]
    S: Tensor  # [sequences, Hv, K, V], float32
    bounds: Tensor  # packed: int32 [slots, 4], first token, last token + 1, chunks before it, its sequence
    # Stands for an absent tensor, read or written; no other tensor does.
    nothing: Tensor

    def or_nothing(self, x: Tensor | None) -> Tensor:
        """What a kernel gets for a tensor that may be absent."""
        return self.nothing if x is None else x

    def or_empty(self, x: Tensor | None) -> Tensor:
        """What an op returns for a tensor that may be absent, or be `nothing`: no two results are the same."""
        return or_empty(None if x is self.nothing else x, self.q)


def _prepare(plan: Plan, inputs: Inputs) -> Operands:
    nothing = inputs.q.new_empty(0, dtype=torch.float32)
    q, k, v, log_g, beta, S = (nothing if x is None else x for x in inputs[:6])
    bounds = sums = nothing
    if inputs.cu_seqlens is not None:
        bounds, _ = pack_chunks(inputs.cu_seqlens, plan.C, plan.slots)
    if plan.channels:
        sums = torch.empty_like(log_g, dtype=plan.sums_dtype)
        launcher(gate_sums_kernel)[(plan.slots, plan.heads.value)](
            log_g, sums, bounds, plan.tokens, plan.heads.value,
            C=plan.C, K=plan.K, LOWEST=LOWEST_GATE, PACKED=plan.packed, num_warps=4,
        )  # fmt: skip
    return Operands(q, k, v, log_g, sums, beta, S, bounds, nothing)


def _kinds(plan: Plan) -> dict[str, Any]:
    return {"GATED": plan.gated, "CHANNELS": plan.channels, "CORRECTS": plan.corrects}


def _constants(plan: Plan, block: int | None = None) -> dict[str, Any]:
    """What kernels over chunks are compiled for; block: values or channels of a program, if it takes any."""
    of_values = {} if block is None else {"V": plan.V, "BLOCK": block}
    return {
        "C": plan.C, "K": plan.K, **of_values, "LEVELS": plan.levels, "LOWEST": LOWEST_GATE, **_kinds(plan),
        "PACKED": plan.packed, "PRECISION": plan.precision,
    }  # fmt: skip


class Chunks(NamedTuple):
    """What follows from chunks alone (see `prepare_kernel`); what is absent is `nothing`."""

    weights: Tensor  # [slots, Hv, C, C]
    inverses: Tensor  # [slots, Hv, parts, C, C], if there is a beta
    queries: Tensor  # [slots, Hv, C, K], as the next two, of channels' gates
    reads: Tensor  # if there is a beta
    kept: Tensor
    decays: Tensor  # [slots, Hv, C] or of channels' gates [slots, Hv, K], float32
    written: Tensor  # [slots, Hv, C], float32, if there is a beta or a gate a head


def _prepare_chunks(plan: Plan, operands: Operands) -> Chunks:
    nothing, square, of_keys = operands.nothing, (plan.C, plan.C), (plan.slots, plan.C, plan.K)
    inverses = queries = reads = kept = decays = written = nothing
    if plan.corrects:
        inverses = room(plan, nothing, plan.slots, plan.inverse_parts, *square)
    if plan.channels:
        queries, kept = (room(plan, nothing, *of_keys) for _ in range(2))
        reads = room(plan, nothing, *of_keys) if plan.corrects else nothing
    if plan.gated:
        decays = room(plan, nothing, plan.slots, plan.K if plan.channels else plan.C, dtype=torch.float32)
    if plan.corrects or (plan.gated and not plan.channels):
        written = room(plan, nothing, plan.slots, plan.C, dtype=torch.float32)
    chunks = Chunks(room(plan, nothing, plan.slots, *square), inverses, queries, reads, kept, decays, written)
    launcher(prepare_kernel)[(plan.slots, plan.heads.value)](
        operands.q, operands.k, operands.log_g, operands.sums, operands.beta, *chunks, operands.bounds, plan.tokens,
        plan.scale, *plan.heads, **_constants(plan), EXACT=plan.exact, PARTS=plan.inverse_parts,
        num_warps=plan.sizes.prepare_warps, num_stages=plan.sizes.prepare_stages,
    )  # fmt: skip
    return chunks


def _maps(plan: Plan, operands: Operands, chunks: Chunks) -> Maps:
    """What chunks make of states."""
    kept, reads = (chunks.kept, chunks.reads) if plan.channels else (operands.k, operands.k)
    there = (None if x is operands.nothing else x for x in (chunks.decays, chunks.written, chunks.inverses))
    return Maps(kept, reads if plan.corrects else None, *there)


def _forwards(plan: Plan, operands: Operands, chunks: Chunks) -> Way:
    """States through chunks."""
    given = Given(operands.v, initial=operands.S if operands.S.numel() else None)
    return Way(plan, _maps(plan, operands, chunks), given, operands.bounds, operands.nothing)


def _backwards(plan: Plan, operands: Operands, chunks: Chunks, incoming: Incoming) -> Way:
    """Their gradients, backwards in time."""
    maps, queries = _maps(plan, operands, chunks), chunks.queries if plan.channels else operands.q
    maps = maps._replace(left=maps.right, right=maps.left)
    given = Given(queries=queries, weights=chunks.weights, dy=incoming.do, initial=incoming.dS)
    return Way(plan, maps, given, operands.bounds, operands.nothing, reverse=True)


def forward(inputs: Inputs, options: Options) -> Outputs:
    """What the options ask for; inputs are contiguous, of the kernels' widths, gates and states of float32."""
    plan = make_plan(inputs, options)
    operands = _prepare(plan, inputs)
    chunks = _prepare_chunks(plan, operands)
    way = _forwards(plan, operands, chunks)
    starts, o = way.starts(), torch.empty_like(operands.v)
    saved = starts if options.save_errors else operands.nothing
    final = way.final() if options.return_state else None
    queries = chunks.queries if plan.channels else operands.q
    tensors = way.or_nothing(*way.maps, operands.v, queries, chunks.weights, way.given.initial, starts)
    block = min(plan.sizes.output_block, plan.V)
    launcher(output_kernel)[(way.groups, plan.heads.value, plan.V // block)](
        *tensors, o, operands.or_nothing(final), operands.bounds, *way.numbers, len(saved),
        **{**way.shapes, "BLOCK": block}, READS=plan.corrects, HAS_INITIAL=way.given.initial is not None,
        PACKED=plan.packed, PRECISION=plan.precision, HAS_STARTS=count_groups(plan) > 0,
        WANTS_FINAL=options.return_state, num_warps=plan.sizes.output_warps, num_stages=plan.sizes.output_stages,
    )  # fmt: skip
    return Outputs(o, *(operands.or_empty(x) for x in (final, None, saved)))


def backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Gradients of all inputs; still to be added up are those of shared heads, and the last dimension of heads' gates'
    and rates', which have one more where a program does not take all channels."""
    plan = make_plan(inputs, options)
    operands, corrects = _prepare(plan, inputs), plan.corrects
    chunks = _prepare_chunks(plan, operands)
    there, back = _forwards(plan, operands, chunks), _backwards(plan, operands, chunks, incoming)
    states, _, errors, _ = there.states(saved.starts, wants_read=corrects)
    dstates, dS, dv, alongs = back.states(
        back.starts(), wants_final=inputs.S is not None, wants_read=True,
        history=History(states, there.given.initial),
    )  # fmt: skip
    dq, dk = (separate_gradients(x, plan.heads.value) for x in (operands.q, operands.k))
    block = min(plan.sizes.key_block, plan.K)
    parts = (plan.K // block,) if plan.K > block else ()
    of_gates = () if plan.channels else parts
    dlog_g = operands.log_g.new_empty(*operands.log_g.shape, *of_gates) if plan.gated else operands.nothing
    dbeta, rates = operands.nothing, operands.beta
    if corrects:
        dbeta = rates.new_empty(*rates.shape, *parts, dtype=torch.float32 if parts else rates.dtype)
    launcher(key_gradient_kernel)[(plan.slots, plan.heads.value, plan.K // block)](
        operands.q, operands.k, incoming.do, dv, errors if corrects else operands.v, operands.log_g,
        operands.sums, operands.beta, states, dstates, alongs, dq, dk, dlog_g, dbeta, operands.bounds,
        plan.tokens, plan.scale, *plan.heads, **_constants(plan, block), VALUES=min(plan.V, plan.sizes.key_values),
        PARTS=alongs.shape[2] if plan.gated else 1, num_warps=plan.sizes.key_warps,
    )  # fmt: skip
    return Gradients(dq, dk, dv, *(operands.or_empty(x) for x in (dlog_g, dbeta, dS if dS.numel() else None)))
