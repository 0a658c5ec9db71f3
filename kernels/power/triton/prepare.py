"""What the passes' kernels read: inputs, gates, columns and the output's gradient, laid out for them."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from zoo.kernels.launch import launcher
from zoo.kernels.power.call import Inputs, Saved
from zoo.kernels.power.triton.chunks import pack_chunks
from zoo.kernels.power.triton.columns import columns_kernel
from zoo.kernels.power.triton.gate_sums import gate_sums_kernel
from zoo.kernels.power.triton.layout import Tables, read_tables
from zoo.kernels.power.triton.output_gradient import output_gradient_kernel
from zoo.kernels.power.triton.plan import Plan

__all__ = [
    "LOWEST_GATE", "Columns", "Operands", "OutputGradient", "Summands", "Weighted", "columns_to_end", "key_columns",
    "output_gradient", "plain_columns", "prepare", "room", "tile_state", "untile_state",
]  # fmt: skip

# exp(-128) is zero in float32, so this stands for -inf; sums of it lose as few digits as may be.
LOWEST_GATE = -128.0
COLUMNS_BLOCK = 64
GATES_BLOCK = 256


class Operands(NamedTuple):
    """The inputs of a call as kernels read them; what is absent is `nothing`."""

    q: Tensor  # [B, T, Hq, K], contiguous like k and v
    k: Tensor
    v: Tensor
    log_g: Tensor  # [B, T, Hv], float32
    offset: Tensor  # over the scale of scores [Hq], float32
    gates: Tensor  # summed from a chunk's start, of base 2 [slots, Hs, C], float32
    gates_low: Tensor  # what rounding left of them, if they are exact
    left: Tensor  # what is left of each token at its chunk's end [slots, Hs, C], float32, if gates were summed here
    bounds: Tensor  # packed: int32 [slots, 4], first token, last token + 1, chunks before it, its sequence
    sequence_slots: Tensor  # packed: int32 [sequences + 1]
    tables: Tables
    # Stands for an absent tensor, read or written. No other tensor does: one that a kernel writes to the compiler
    # copies for each of its names, and keeps the last one's copy; one that it does not even read it may take for
    # written to, and copy.
    nothing: Tensor

    def or_nothing(self, x: Tensor | None) -> Tensor:
        """What a kernel gets for a tensor that may be absent."""
        return self.nothing if x is None else x


class Columns(NamedTuple):
    """Keys and queries with tokens last, in the products' dtype; None where none were made, as at p = 1.

    What a tile is scaled with is read from them, one channel of many tokens.
    """

    keys: Tensor | None = None  # [slots, Hk, K, C]
    queries: Tensor | None = None  # [slots, Hq, K, C]


class Summands(NamedTuple):
    """What chunks' tokens add to a state, `sum decay m(x) y^T`, and to z: keys, or queries to its gradient; p >= 2."""

    x: Tensor  # with tokens last [slots, Hx, K, C]
    decayed: Tensor  # the same times decay for each output or state [slots, Ho or Hs, K, C]
    y: Tensor  # [B, T, Hy, V]
    delta: Tensor | None = None  # what z is added times, negative [slots, Ho, C]; None for 1


class Weighted(NamedTuple):
    """The same at p = 1, where each product is a sum of `x (weight y)^T`, so that x is read once for all its heads."""

    x: Tensor  # [B, T, Hx, K]
    y: Tensor  # [B, T, Hy, V]
    weights: Tensor | None  # [slots, Ho or Hs, C], float32; None for 1
    delta: Tensor | None = None  # as in `Summands`
    repeats: int = 1  # Ho / Hs of queries, whose outputs add up in a state


class OutputGradient(NamedTuple):
    """The gradients of numerator and denominator are `do factors` and `-delta factors`; they stay in these factors.

    So do meets its first product unrounded, and terms that cancel do so in float32.
    """

    do: Tensor  # [B, T, Ho, V], in the products' dtype
    delta: Tensor | None  # do . o, tokens last [slots, Ho, C], float32, if normalised
    factors: Tensor  # scale^p, over the denominator if normalised, zero where it vanishes or there is no token
    # Queries with tokens last [slots, Ho, K, C], times factors and what is left at them of their chunk's start; at
    # p = 1 those numbers alone [slots, Ho, C], for do to be weighted with. None where there are no states.
    weighted: Tensor | None


def prepare(plan: Plan, inputs: Inputs, gates: Tensor | None, *, packs: bool) -> Operands:
    """Inputs, laid out.

    Args:
        plan: the call's.
        inputs: the call's.
        gates: summed, as an earlier pass left them, where keys need not be summed up once more.
        packs: whether a packed state, or its gradient, comes in or goes out.
    """
    q, k, v = inputs.q.contiguous(), inputs.k.contiguous(), inputs.v.contiguous()
    nothing = q.new_empty(0, dtype=torch.float32)
    bounds = sequence_slots = gates_low = left = log_g = offset = nothing
    if inputs.cu_seqlens is not None:
        bounds, sequence_slots = pack_chunks(inputs.cu_seqlens, plan.C, plan.slots)
    if inputs.log_g is not None:
        log_g = inputs.log_g.float().contiguous()
    if inputs.offset is not None:
        offset = (inputs.offset / plan.score_scale).float().contiguous()
    if inputs.log_g is not None and gates is None:
        gates, left = (room(*plan.gates_shape, like=q, dtype=torch.float32) for _ in range(2))
        gates_low = room(*plan.gates_shape, like=q, dtype=torch.float32) if plan.exact_gates else nothing
        values, states = plan.heads.value, plan.heads.state
        launcher(gate_sums_kernel)[(plan.slots, states)](
            log_g, gates, gates_low, left, bounds, plan.tokens, plan.C, values, states // values,
            BLOCK=GATES_BLOCK, LOWEST=LOWEST_GATE, EXACT=plan.exact_gates, PACKED=plan.packed,
        )  # fmt: skip
    return Operands(
        q=q, k=k, v=v, log_g=log_g, offset=offset, gates=nothing if gates is None else gates, gates_low=gates_low,
        left=left, bounds=bounds, sequence_slots=sequence_slots, tables=_tables(plan, nothing, packs=packs),
        nothing=nothing,
    )  # fmt: skip


def _tables(plan: Plan, nothing: Tensor, *, packs: bool) -> Tables:
    """Those that are read: at p <= 2 by nobody but a state that is packed."""
    absent = Tables(*(nothing for _ in Tables._fields))
    if plan.p <= 2 and not packs:
        return absent
    tables = read_tables(plan.layout, nothing.device)
    if plan.p <= 2:
        return absent._replace(packed=tables.packed, unpacked=tables.unpacked, carried=tables.carried)
    return tables


def room(*shape: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory to write to.

    Not by `new_empty`: of two such calls, one in the forward and one in the backward pass, the compiler makes one, and
    keeps what nobody has written.
    """
    return torch.empty(shape, dtype=dtype, device=like.device)


def _room_for_columns(plan: Plan, operands: Operands, heads: int, dtype: torch.dtype | None = None) -> Tensor:
    return room(plan.slots, heads, plan.K, plan.C, like=operands.q, dtype=dtype or plan.dtype)


def key_columns(plan: Plan, operands: Operands) -> Columns:
    """Keys alone; nothing at p = 1."""
    if plan.p == 1:
        return Columns()
    columns = Columns(_room_for_columns(plan, operands, plan.heads.key))
    _fill_columns(plan, operands, columns, None)
    return columns


def plain_columns(plan: Plan, operands: Operands) -> Columns:
    """Keys and queries; nothing at p = 1."""
    if plan.p == 1:
        return Columns()
    heads = plan.heads
    columns = Columns(*(_room_for_columns(plan, operands, count) for count in (heads.key, heads.query)))
    _fill_columns(plan, operands, columns, None)
    return columns


def columns_to_end(plan: Plan, operands: Operands, *, exact: bool) -> tuple[Columns, Tensor]:
    """Keys and queries, and what is left of each key at its chunk's end `[slots, Hs, K, C]`; p >= 2.

    exact: for a state that is returned, so that its monomials are rounded once, and not with the decay before.
    """
    heads = plan.heads
    dtype = torch.float32 if exact and not plan.hopper else plan.dtype
    keys, decayed = (_room_for_columns(plan, operands, *x) for x in ((heads.key,), (heads.state, dtype)))
    columns = Columns(keys, _room_for_columns(plan, operands, heads.query))
    _fill_columns(plan, operands, columns, decayed)
    return columns, decayed


def _fill_columns(plan: Plan, operands: Operands, columns: Columns, decayed: Tensor | None) -> None:
    """Fill keys, and, if there are any, queries and keys decayed by what is left of them at their chunk's end."""
    heads = plan.heads
    programs = heads.key + (0 if columns.queries is None else heads.query)
    launcher(columns_kernel)[(triton.cdiv(plan.C, COLUMNS_BLOCK), plan.slots, programs)](
        operands.k, operands.q, operands.nothing if decayed is None else operands.left,
        *(operands.or_nothing(x) for x in (columns.keys, decayed, columns.queries)), operands.bounds,
        plan.tokens, plan.C, heads.key, heads.query, heads.state // heads.key,
        K=plan.K, BLOCK=COLUMNS_BLOCK, DECAYED=decayed is not None, GATED=plan.gated, PACKED=plan.packed,
        PRECISION=plan.precision,
    )  # fmt: skip


def output_gradient(
    plan: Plan, operands: Operands, do: Tensor, saved: Saved, columns: Columns, *, decayed: bool
) -> tuple[OutputGradient, Columns]:
    """The output's gradient, and the columns that the backward pass reads, made here if they were not.

    decayed: with `weighted`, where there are states.
    """
    heads = plan.heads
    do = do.to(plan.dtype).contiguous()
    factors = room(plan.slots, heads.output, plan.C, like=do, dtype=torch.float32)
    delta = room(*factors.shape, like=do, dtype=torch.float32) if plan.normalize else None
    keys = queries = weighted = None
    if plan.p > 1 and columns.keys is None and (decayed or not plan.fused):
        keys = _room_for_columns(plan, operands, heads.key)
    if columns.queries is None and decayed and plan.p > 1:
        queries = _room_for_columns(plan, operands, heads.query)
    if decayed and plan.p > 1:
        weighted = _room_for_columns(plan, operands, heads.output)
    elif decayed:
        weighted = room(*factors.shape, like=do, dtype=torch.float32)
    o, denominator = (saved.o, saved.denominator) if plan.normalize else (None, None)
    programs = heads.query + (0 if keys is None else heads.key)
    launcher(output_gradient_kernel)[(triton.cdiv(plan.C, COLUMNS_BLOCK), plan.slots, programs)](
        operands.q, operands.k, do, operands.or_nothing(o), operands.or_nothing(denominator), operands.gates,
        operands.gates_low, factors, *(operands.or_nothing(x) for x in (delta, queries, weighted, keys)),
        operands.bounds, plan.tokens, plan.C, plan.scale, heads.query, heads.key, heads.output // heads.query,
        heads.output // heads.state,
        K=plan.K, V=plan.V, BLOCK=COLUMNS_BLOCK, NORMALIZE=plan.normalize, GATED=plan.gated,
        EXACT_GATES=plan.exact_gates, PLAIN=queries is not None, WEIGHTED=decayed, NUMBERS=plan.p == 1,
        PACKED=plan.packed, PRECISION=plan.precision,
    )  # fmt: skip
    made = Columns(*(old if new is None else new for old, new in zip(columns, (keys, queries), strict=True)))
    return OutputGradient(do, delta, factors, weighted), made


def tile_state(
    plan: Plan, operands: Operands, S: Tensor | None, z: Tensor | None, *, gradient: bool = False
) -> Tensor | None:
    """A packed state, or its gradient, in the tiled layout `[sequences, Hs, rows (V + 1)]`, float32; None for none."""
    if S is None or z is None:
        return None
    if gradient:
        c = operands.tables.carried
        S, z = S / c[:, None], z / c
    packed, padding = operands.tables.packed, plan.layout.padding
    S, z = S.float()[:, :, packed], z.float()[:, :, packed]
    if padding:
        S[:, :, -padding:], z[:, :, -padding:] = 0, 0
    return torch.cat((S.flatten(2), z), 2).contiguous()


def untile_state(
    plan: Plan, operands: Operands, state: Tensor | None, *, gradient: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """The inverse of `tile_state`."""
    if state is None:
        return None, None
    split, unpacked = plan.layout.rows * plan.V, operands.tables.unpacked
    S = state[:, :, :split].unflatten(2, (-1, plan.V))[:, :, unpacked]
    z = state[:, :, split:][:, :, unpacked]
    if gradient:
        c = operands.tables.carried
        S, z = S * c[:, None], z * c
    return S, z
