"""The forward and the backward pass: what is launched, one after the other, on tensors as kernels read them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.kernels.delta.call import Gradients, Incoming, Inputs, Options, Outputs, Saved
from zoo.kernels.delta.triton.gates import gate_sums_kernel
from zoo.kernels.delta.triton.incoming import incoming_kernel
from zoo.kernels.delta.triton.key_gradient import key_gradient_kernel
from zoo.kernels.delta.triton.output import output_kernel
from zoo.kernels.delta.triton.plan import Plan, group_length, make_plan
from zoo.kernels.delta.triton.prepare import prepare_kernel
from zoo.kernels.delta.triton.states import compose_kernel, join_kernel, states_kernel
from zoo.kernels.delta.triton.value_gradient import value_gradient_kernel
from zoo.kernels.launch import launcher
from zoo.kernels.power.call import or_empty
from zoo.kernels.power.heads import separate_gradients
from zoo.kernels.power.triton.chunks import pack_chunks

__all__ = ["backward", "forward"]

# exp(-128) is zero in float32, so this stands for -inf; sums of it lose as few digits as may be.
LOWEST_GATE = -128.0
JOINED = 16  # columns of a program that takes groups one after the other


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


class Maps(NamedTuple):
    """What chunks do to a state: `S <- decay S + R^T (v - (k exp(G)) S)`."""

    reads: Tensor  # k exp(G) [slots, Hv, C, K], if there is a beta
    kept: Tensor  # R [slots, Hv, C, K]
    wholes: Tensor  # the decay [slots, Hv] or [slots, Hv, K], float32


class Given(NamedTuple):
    """What chunks are given: values v, or, for `dS <- decay dS + additions - (k exp(G))^T (values + R dS)`, both."""

    values: Tensor  # [B, T, Hv, V]
    additions: Tensor  # [slots, Hv, K, V], of gradients alone
    initial: Tensor | None  # [sequences, Hv, K, V], float32


def _prepare(plan: Plan, inputs: Inputs) -> Operands:
    nothing = inputs.q.new_empty(0, dtype=torch.float32)
    q, k, v, log_g, beta, S = (nothing if x is None else x.contiguous() for x in inputs[:6])
    bounds = sums = nothing
    if inputs.cu_seqlens is not None:
        bounds, _ = pack_chunks(inputs.cu_seqlens, plan.C, plan.slots)
    if plan.gated:
        log_g = log_g.float()
    if plan.channels:
        sums = torch.empty_like(log_g, dtype=torch.float64 if plan.exact_gates else torch.float32)
        launcher(gate_sums_kernel)[(plan.slots, plan.heads.value)](
            log_g, sums, bounds, plan.tokens, plan.heads.value,
            C=plan.C, K=plan.K, LOWEST=LOWEST_GATE, PACKED=plan.packed, num_warps=4,
        )  # fmt: skip
    return Operands(q, k, v, log_g, sums, beta, S.float(), bounds, nothing)


def _room(plan: Plan, operands: Operands, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a matrix for each head: shape is how many of them, and that of one."""
    count, *matrix = shape
    return operands.q.new_empty(count, plan.heads.value, *matrix, dtype=dtype or plan.dtype)


def _kinds(plan: Plan) -> dict[str, Any]:
    return {"GATED": plan.gated, "CHANNELS": plan.channels, "CORRECTS": plan.corrects}


def _constants(plan: Plan, block: int | None = None) -> dict[str, Any]:
    """What kernels over chunks are compiled for; block: values or channels of a program, if it takes any."""
    of_values = {} if block is None else {"V": plan.V, "BLOCK": block}
    return {
        "C": plan.C, "K": plan.K, **of_values, "LEVELS": plan.levels, "LOWEST": LOWEST_GATE, **_kinds(plan),
        "PACKED": plan.packed, "PRECISION": plan.precision,
    }  # fmt: skip


def _room_for_maps(plan: Plan, operands: Operands, *, keeps: bool) -> Maps:
    """keeps: also without a beta, where only the forward pass keeps anything of keys."""
    matrix = (plan.slots, plan.C, plan.K)
    reads = _room(plan, operands, *matrix) if plan.corrects else operands.nothing
    kept = _room(plan, operands, *matrix) if keeps or plan.corrects else operands.nothing.to(plan.dtype)
    gates = (plan.slots, plan.K) if plan.channels else (plan.slots,)
    wholes = _room(plan, operands, *gates, dtype=torch.float32) if plan.gated else operands.nothing
    return Maps(reads, kept, wholes)


def _map_chunks(plan: Plan, operands: Operands) -> tuple[Tensor, Maps]:
    """What chunks' errors follow from `[slots, Hv, C, C]`, and what chunks do to states."""
    square = (plan.slots, plan.C, plan.C)
    inverses = _room(plan, operands, *square, dtype=plan.inverse_dtype) if plan.corrects else operands.nothing
    maps = _room_for_maps(plan, operands, keeps=True)
    launcher(prepare_kernel)[(plan.slots, plan.heads.value)](
        operands.k, operands.log_g, operands.sums, operands.beta, inverses, *maps, operands.bounds,
        plan.tokens, plan.heads.key, plan.heads.value, **_constants(plan), num_warps=plan.sizes.prepare_warps,
    )  # fmt: skip
    return inverses, maps


def _map_gradients(plan: Plan, operands: Operands, incoming: Incoming, saved: Saved) -> tuple[Maps, Given]:
    """What chunks do to gradients of states, backwards in time, and what they are given."""
    maps = _room_for_maps(plan, operands, keeps=False)
    additions = _room(plan, operands, plan.slots, plan.K, plan.V)
    derrors = torch.empty_like(operands.v, dtype=plan.dtype) if plan.corrects else operands.nothing
    launcher(incoming_kernel)[(plan.slots, plan.heads.value)](
        operands.q, operands.k, incoming.do, operands.log_g, operands.sums, operands.beta, saved.inverses, additions,
        derrors, *maps, operands.bounds, plan.tokens, plan.scale, *plan.heads,
        **_constants(plan, min(plan.V, plan.sizes.value_block)), num_warps=plan.sizes.incoming_warps,
    )  # fmt: skip
    return maps, Given(derrors, additions, incoming.dS)


def _scan(
    plan: Plan, operands: Operands, maps: Maps, given: Given, *, wants_final: bool, reverse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """States before chunks, or, reverse, gradients after them, and, if wanted, what is left of each sequence's."""
    length, sizes, heads, initial = group_length(plan), plan.sizes, plan.heads.value, given.initial
    groups, block = -(-plan.slots // length), min(sizes.state_block, plan.K, plan.V)
    states, final, starts = _room(plan, operands, plan.slots, plan.K, plan.V), None, None
    if wants_final:  # sequences without tokens keep what they have
        shape = (plan.sequences, heads, plan.K, plan.V)
        final = operands.q.new_zeros(shape, dtype=torch.float32) if initial is None else initial.clone()
    tensors = (*maps, given.values, given.additions, operands.or_nothing(initial))
    numbers = (plan.tokens, plan.slots, length, heads)
    shapes = {"C": plan.C, "K": plan.K, "V": plan.V, "BLOCK": block, **_kinds(plan)}
    how = {"HAS_INITIAL": initial is not None, "REVERSE": reverse, "PACKED": plan.packed, "PRECISION": plan.precision}
    options = {"num_warps": sizes.state_warps, "num_stages": sizes.state_stages}
    if groups > 1 and (plan.packed or length != plan.chunks):
        of_groups = {"dtype": torch.float32}
        products = _room(plan, operands, groups, plan.K, plan.K, **of_groups)
        sums, starts = (_room(plan, operands, groups, plan.K, plan.V, **of_groups) for _ in range(2))
        launcher(compose_kernel)[(groups, heads, (plan.K + plan.V) // block)](
            *tensors, products, sums, operands.bounds, *numbers, **shapes, **how, **options
        )
        launcher(join_kernel)[(heads, plan.V // JOINED)](
            products, sums, starts, groups, heads, K=plan.K, V=plan.V, BLOCK=JOINED, REVERSE=reverse,
            num_warps=8 if plan.K > 64 else 4, num_stages=2,
        )  # fmt: skip
    launcher(states_kernel)[(groups, heads, plan.V // block)](
        *tensors, operands.or_nothing(starts), states, operands.or_nothing(final), operands.bounds, *numbers,
        **shapes, HAS_STARTS=starts is not None, WANTS_FINAL=wants_final, **how, **options,
    )  # fmt: skip
    return states, final


def forward(inputs: Inputs, options: Options) -> Outputs:
    """What the options ask for; widths are the kernels'."""
    plan = make_plan(inputs, options)
    operands, sizes = _prepare(plan, inputs), plan.sizes
    inverses, maps = _map_chunks(plan, operands)
    given = Given(operands.v, operands.nothing, None if inputs.S is None else operands.S)
    states, final = _scan(plan, operands, maps, given, wants_final=options.return_state)
    o, block = torch.empty_like(operands.v), min(plan.V, sizes.output_block)
    launcher(output_kernel)[(plan.slots, plan.heads.value, plan.V // block)](
        operands.q, operands.k, operands.v, operands.log_g, operands.sums, operands.beta, inverses, states, o,
        operands.bounds, plan.tokens, plan.scale, *plan.heads,
        **_constants(plan, block), num_warps=sizes.output_warps,
    )  # fmt: skip
    kept = (inverses, states) if options.save_errors else (None, None)
    return Outputs(o, *(operands.or_empty(x) for x in (final, None, *kept)))


def backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Gradients of all inputs, those of shared heads still to be added up."""
    plan = make_plan(inputs, options)
    operands = _prepare(plan, inputs)
    dS = None if incoming.dS is None else incoming.dS.float().contiguous()
    incoming = Incoming(incoming.do.to(inputs.v.dtype).contiguous(), dS)
    maps, given = _map_gradients(plan, operands, incoming, saved)
    dstates, dS = _scan(plan, operands, maps, given, wants_final=inputs.S is not None, reverse=True)
    dv, written, dbeta = _value_gradient(plan, operands, incoming.do, saved, dstates)
    dq, dk = (separate_gradients(x, plan.heads.value) for x in (operands.q, operands.k))
    block = min(plan.sizes.key_block, plan.K)
    parts = () if plan.channels or not plan.gated else (plan.K // block,)
    dlog_g = operands.log_g.new_empty(*operands.log_g.shape, *parts) if plan.gated else operands.nothing
    launcher(key_gradient_kernel)[(plan.slots, plan.heads.value, plan.K // block)](
        operands.q, operands.k, incoming.do, dv, written, operands.log_g, operands.sums, saved.states, dstates,
        dq, dk, dlog_g, operands.bounds, plan.tokens, plan.scale, *plan.heads,
        **_constants(plan, block), num_warps=plan.sizes.key_warps,
    )  # fmt: skip
    dlog_g = dlog_g.sum(-1) if parts else dlog_g
    return Gradients(dq, dk, dv, *(operands.or_empty(x) for x in (dlog_g, dbeta, dS)))


def _value_gradient(
    plan: Plan, operands: Operands, do: Tensor, saved: Saved, dstates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dv in the products' dtype, what was written, and dbeta."""
    dv, written, dbeta = torch.empty_like(operands.v, dtype=plan.dtype), operands.v, operands.nothing
    if plan.corrects:
        written, dbeta = torch.empty_like(dv), torch.empty_like(operands.beta)
    launcher(value_gradient_kernel)[(plan.slots, plan.heads.value)](
        operands.q, operands.k, operands.v, do, operands.log_g, operands.sums, operands.beta, saved.inverses,
        saved.states, dstates, dv, written if plan.corrects else operands.nothing, dbeta, operands.bounds,
        plan.tokens, plan.scale, *plan.heads,
        **_constants(plan, min(plan.V, plan.sizes.value_block)), num_warps=plan.sizes.value_warps,
    )  # fmt: skip
    return dv, written, dbeta
