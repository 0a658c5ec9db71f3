"""The forward and the backward pass: what is launched, one after the other, on tensors as kernels read them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.kernels.delta.call import Gradients, Incoming, Inputs, Options, Outputs, Saved
from zoo.kernels.delta.triton.gates import gate_sums_kernel
from zoo.kernels.delta.triton.incoming import incoming_kernel
from zoo.kernels.delta.triton.key_gradient import key_gradient_kernel
from zoo.kernels.delta.triton.output import output_kernel
from zoo.kernels.delta.triton.plan import Plan, make_plan
from zoo.kernels.delta.triton.prepare import prepare_kernel
from zoo.kernels.delta.triton.scan import Given, History, Maps, room, scan
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
    q, k, v, log_g, beta, S = (nothing if x is None else x.contiguous() for x in inputs[:6])
    bounds = sums = nothing
    if inputs.cu_seqlens is not None:
        bounds, _ = pack_chunks(inputs.cu_seqlens, plan.C, plan.slots)
    if plan.gated:
        log_g = log_g.float()
    if plan.channels:
        sums = torch.empty_like(log_g, dtype=torch.float64 if plan.exact else torch.float32)
        launcher(gate_sums_kernel)[(plan.slots, plan.heads.value)](
            log_g, sums, bounds, plan.tokens, plan.heads.value,
            C=plan.C, K=plan.K, LOWEST=LOWEST_GATE, PACKED=plan.packed, num_warps=4,
        )  # fmt: skip
    return Operands(q, k, v, log_g, sums, beta, S.float(), bounds, nothing)


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
    """What follows from a chunk alone; what is absent is `nothing`."""

    reads: Tensor  # -k exp(G) [slots, Hv, C, K], if there is a beta
    kept: Tensor  # R [slots, Hv, C, K]
    wholes: Tensor  # the decay of a whole chunk [slots, Hv] or [slots, Hv, K], float32

    def present(self, operands: Operands) -> list[Tensor | None]:
        """None for what is absent."""
        return [None if x is operands.nothing else x for x in self]


def _room_for_chunks(plan: Plan, operands: Operands) -> Chunks:
    q, matrix = operands.q, (plan.slots, plan.C, plan.K)
    reads = room(plan, q, *matrix) if plan.corrects else operands.nothing
    gates = (plan.slots, plan.K) if plan.channels else (plan.slots,)
    wholes = room(plan, q, *gates, dtype=torch.float32) if plan.gated else operands.nothing
    return Chunks(reads, room(plan, q, *matrix), wholes)


def _map_chunks(plan: Plan, operands: Operands) -> tuple[Tensor, Maps]:
    """What chunks' errors follow from `[slots, Hv, C, C]`, and what chunks do to states."""
    square = (plan.slots, plan.C, plan.C)
    inverses = room(plan, operands.q, *square, dtype=plan.inverse_dtype) if plan.corrects else operands.nothing
    chunks = _room_for_chunks(plan, operands)
    launcher(prepare_kernel)[(plan.slots, plan.heads.value)](
        operands.k, operands.log_g, operands.sums, operands.beta, inverses, *chunks, operands.bounds,
        plan.tokens, plan.heads.key, plan.heads.value, **_constants(plan), EXACT=plan.exact,
        num_warps=plan.sizes.prepare_warps,
    )  # fmt: skip
    reads, kept, wholes = chunks.present(operands)
    return inverses, Maps(kept, reads, wholes)


def _map_gradients(plan: Plan, operands: Operands, incoming: Incoming, saved: Saved) -> tuple[Maps, Given]:
    """What chunks do to gradients of states, backwards in time, and what they are given."""
    chunks = _room_for_chunks(plan, operands)
    additions = room(plan, operands.q, plan.slots, plan.K, plan.V)
    derrors = torch.empty_like(operands.v, dtype=plan.dtype)
    launcher(incoming_kernel)[(plan.slots, plan.heads.value)](
        operands.q, operands.k, incoming.do, operands.log_g, operands.sums, operands.beta, saved.inverses, additions,
        derrors, *chunks, operands.bounds, plan.tokens, plan.scale, *plan.heads,
        **_constants(plan, min(plan.V, plan.sizes.value_block)), num_warps=plan.sizes.incoming_warps,
    )  # fmt: skip
    reads, kept, wholes = chunks.present(operands)
    return Maps(reads, kept, wholes), Given(derrors, additions, incoming.dS)


def forward(inputs: Inputs, options: Options) -> Outputs:
    """What the options ask for; widths are the kernels'."""
    plan = make_plan(inputs, options)
    operands, sizes, nothing = _prepare(plan, inputs), plan.sizes, None
    inverses, maps = _map_chunks(plan, operands)
    given = Given(operands.v, initial=None if inputs.S is None else operands.S)
    states, final, *_ = scan(plan, maps, given, operands.bounds, wants_final=options.return_state)
    o, block = torch.empty_like(operands.v), min(plan.V, sizes.output_block)
    wants_errors = plan.corrects and options.save_errors
    errors = torch.empty_like(o, dtype=plan.dtype) if wants_errors else operands.nothing
    launcher(output_kernel)[(plan.slots, plan.heads.value, plan.V // block)](
        operands.q, operands.k, operands.v, operands.log_g, operands.sums, operands.beta, inverses, states, o, errors,
        operands.bounds, plan.tokens, plan.scale, *plan.heads,
        **_constants(plan, block), WANTS_ERRORS=wants_errors, num_warps=sizes.output_warps,
    )  # fmt: skip
    kept = (errors, inverses, states) if options.save_errors else (nothing,) * 3
    return Outputs(o, *(operands.or_empty(x) for x in (final if options.return_state else None, *kept)))


def backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Gradients of all inputs, those of shared heads still to be added up."""
    plan = make_plan(inputs, options)
    operands = _prepare(plan, inputs)
    initial = None if incoming.dS is None else incoming.dS.float().contiguous()
    incoming = Incoming(incoming.do.to(inputs.v.dtype).contiguous(), initial)
    maps, given = _map_gradients(plan, operands, incoming, saved)
    history = History(saved.states, None if inputs.S is None else operands.S)
    dstates, dS, dv, alongs = scan(
        plan, maps, given, operands.bounds, wants_final=inputs.S is not None, history=history, wants_read=True
    )
    dq, dk = (separate_gradients(x, plan.heads.value) for x in (operands.q, operands.k))
    block = min(plan.sizes.key_block, plan.K)
    parts = (plan.K // block,)
    of_gates = () if plan.channels else parts
    dlog_g = operands.log_g.new_empty(*operands.log_g.shape, *of_gates) if plan.gated else operands.nothing
    dbeta = operands.log_g.new_empty(*operands.beta.shape, *parts) if plan.corrects else operands.nothing
    launcher(key_gradient_kernel)[(plan.slots, plan.heads.value, plan.K // block)](
        operands.q, operands.k, incoming.do, dv, saved.errors if plan.corrects else operands.v, operands.log_g,
        operands.sums, operands.beta, saved.states, dstates, alongs, dq, dk, dlog_g, dbeta, operands.bounds,
        plan.tokens, plan.scale, *plan.heads, **_constants(plan, block), VALUES=min(plan.V, plan.sizes.key_values),
        PARTS=alongs.shape[2] if plan.gated else 1, num_warps=plan.sizes.key_warps,
    )  # fmt: skip
    dlog_g = dlog_g.sum(-1) if plan.gated and of_gates else dlog_g
    dbeta = dbeta.sum(-1).to(operands.beta.dtype) if plan.corrects else dbeta
    return Gradients(dq, dk, dv, *(operands.or_empty(x) for x in (dlog_g, dbeta, dS if dS.numel() else None)))
