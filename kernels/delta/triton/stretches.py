"""What finds the errors of tokens on a power state: which launches of `errors.py`, over which memory, in what order."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.kernels.delta.triton.errors import inverse_kernel, join_kernel, read_kernel, solve_kernel, write_kernel
from zoo.kernels.launch import launch, launcher
from zoo.kernels.power.call import Inputs, Options
from zoo.kernels.power.supported import supports_hopper
from zoo.kernels.power.triton.layout import make_layout, read_tables
from zoo.kernels.power.triton.plan import Plan, make_plan
from zoo.kernels.power.triton.prepare import Columns, Operands, columns_to_end, prepare, room, tile_state
from zoo.kernels.triton_support import INTERPRETED

__all__ = ["Errors", "find_errors"]


class Errors(NamedTuple):
    """What a pass over the stretches gives, both `[B, T, Hv, V]`."""

    errors: Tensor  # float32
    written: Tensor  # the rate times them, in the products' dtype


class _Sizes(NamedTuple):
    """Tokens, values and warps of the kernels of `errors.py`; measured, and not tuned at start-up."""

    stretch: int = 512  # L
    chunk: int = 64  # C
    read_block: int = 64
    read_warps: int = 4
    most_shares: int = 4  # of a state's rows, read by programs of their own
    reading: int = 256  # programs, of which a GPU runs so many side by side
    solve_values: int = 16
    solve_meets: int = 128
    solve_warps: int = 4
    write_block: int = 128
    write_warps: int = 4
    hopper: bool = False  # whether its own kernels read and write


_SMALL = _Sizes(stretch=32, chunk=16, read_block=16, solve_meets=16, write_block=16)
_FLOAT = _Sizes(chunk=32, read_block=32, solve_meets=32, write_block=32, write_warps=8)
_WIDE = _Sizes(write_warps=8, solve_warps=8)
_HOPPER = _Sizes(hopper=True, most_shares=8, reading=128, solve_values=32)


def _sizes(k: Tensor, v: Tensor, p: int) -> _Sizes:
    if INTERPRETED:
        return _SMALL
    if k.dtype != torch.bfloat16:
        return _FLOAT
    if supports_hopper(k, k.shape[-1], v.shape[-1], p):
        return _HOPPER
    return _WIDE if max(k.shape[-1], v.shape[-1]) > 64 else _Sizes()


class _Call(NamedTuple):
    """One call: power attention's plan, whose chunks are stretches, its operands, and what launches have in common."""

    sizes: _Sizes
    plan: Plan
    operands: Operands
    beta: Tensor
    S: Tensor | None  # [sequences, Hv, D, V], those with most stretches first
    sequences: Tensor  # packed: int32 [sequences, 2], slots of the first stretch and after the last
    arrived: Tensor  # int32 [slots, Hv, parts of a stretch that are read], zeros

    @property
    def kinds(self) -> dict[str, Any]:
        return {"PACKED": self.plan.packed, "PRECISION": self.plan.precision}

    @property
    def gated(self) -> dict[str, Any]:
        return {"GATED": self.plan.gated, "EXACT_GATES": self.plan.exact_gates}

    @property
    def gates(self) -> tuple[Tensor, Tensor]:
        return self.operands.gates, self.operands.gates_low

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Where stretches of packed sequences are."""
        return self.operands.bounds, self.sequences

    @property
    def blocks(self) -> int:
        """Of C tokens, in the longest stretch."""
        return -(-min(self.plan.C, self.plan.tokens) // self.sizes.chunk)

    @property
    def stretches(self) -> int:
        """At most, of a sequence."""
        return -(-self.plan.tokens // self.plan.C)

    @property
    def together(self) -> int:
        """Heads and rows that are worked on side by side."""
        return self.plan.heads.value * (1 if self.plan.packed else self.plan.batch)

    @property
    def parts(self) -> int:
        """Of a stretch, which are read each by itself."""
        return self.plan.programs(self.sizes.read_block) * (self.plan.V // 64 if self.sizes.hopper else 1)

    @property
    def shares(self) -> int:
        """Of a state's rows."""
        return max(1, min(self.sizes.most_shares, self.sizes.reading // (self.together * self.parts)))

    def longer(self, index: int) -> int:
        """How many sequences can have a stretch of this index: packed ones have as many whole stretches before it."""
        if not self.plan.packed or index == 0:
            return self.plan.sequences
        return min(self.plan.sequences, self.plan.tokens // (index * self.plan.C))


def _make_call(
    k: Tensor, v: Tensor, log_g: Tensor | None, beta: Tensor, S: Tensor | None, cu_seqlens: Tensor | None, p: int
) -> _Call:
    sizes, inputs = _sizes(k, v, p), Inputs(k, k, v, log_g, cu_seqlens=cu_seqlens)
    plan = make_plan(inputs, Options(p, 1.0, normalize=False, use_triton=True, chunk_size=sizes.stretch))
    inner = 16 if sizes.hopper else min(plan.K, 64) if p == 2 else max(16, plan.K // 2)
    plan = plan._replace(hopper=False, layout=make_layout(plan.K, p, inner))
    operands = prepare(plan, inputs, None, packs=S is not None)
    sequences = operands.nothing
    if plan.packed:
        starts, ends = operands.sequence_slots[:-1], operands.sequence_slots[1:]
        order = (ends - starts).argsort(descending=True, stable=True)
        sequences = torch.stack((starts, ends), 1)[order].contiguous()
        S = None if S is None else S[order]
    call = _Call(sizes, plan, operands, beta, S, sequences, operands.nothing)
    return call._replace(arrived=room(plan.slots, plan.heads.value, call.parts, like=v, dtype=torch.int32))


def find_errors(
    k: Tensor, v: Tensor, log_g: Tensor | None, beta: Tensor, S: Tensor | None, cu_seqlens: Tensor | None, p: int
) -> Errors:
    """The errors of all tokens, and what is written; of `delta.call.Inputs` those that it takes for that."""
    call = _make_call(k, v, log_g, beta, S, cu_seqlens, p)
    errors = Errors(room(*v.shape, like=v, dtype=torch.float32), room(*v.shape, like=v, dtype=call.plan.dtype))
    inverses = _inverses(call)
    past = _make_past(call)
    for index in range(call.stretches):
        if index > 0 or S is not None:
            _read(call, past, index)
        _solve(call, past, inverses, errors, index)
        if index + 1 < call.stretches:
            _write(call, past, errors, index)
    return errors


def _inverses(call: _Call) -> Tensor:
    """Of all stretches `[slots, Hv, blocks C C]`, as `inverse_kernel` and `join_kernel` make them."""
    (_, plan, operands, beta, *_), C = call, call.sizes.chunk
    most, dtype = plan.C // C, torch.float16 if plan.dtype == torch.bfloat16 else torch.float32
    inverses = room(plan.slots, plan.heads.value, most * (most + 1) // 2 * C * C, like=operands.v, dtype=dtype)
    tensors = (operands.k, *call.gates, beta, inverses)
    numbers = (plan.tokens, plan.C, plan.heads.key, plan.heads.value)
    launcher(inverse_kernel)[(call.blocks, plan.slots, plan.heads.value)](
        *tensors, call.arrived, operands.bounds, *numbers, call.parts, C=C, K=plan.K, P=plan.p,
        LEVELS=C.bit_length() - 1, **call.gated, EXACT=operands.k.dtype == torch.float32, **call.kinds, num_warps=4,
    )  # fmt: skip
    if call.blocks > 1:
        launcher(join_kernel)[(call.blocks // 2, plan.slots, plan.heads.value)](
            *tensors, operands.bounds, *numbers, C=C, K=plan.K, P=plan.p, **call.gated, **call.kinds,
            num_warps=4, num_stages=2,
        )  # fmt: skip
    return inverses


class _Past(NamedTuple):
    """States before a stretch, of sequences that have one, and what they hold for it; `nothing`, if none has."""

    columns: Columns
    decayed: Tensor  # keys, times what is left of them at their stretch's end [slots, Hv, K, L]
    carried: Tensor  # [sequences, Hv, rows, V], float32
    states: Tensor  # the same in the products' dtype, weighted but on Hopper
    reads: Tensor  # by shares of a state's rows [sequences, Hv, shares, L, V], float32
    unread: Tensor  # values, but for what states hold [sequences, Hv, L, V], float32
    channels: Tensor  # of outer monomials, from p = 3 on, as the next two
    weights: Tensor  # of tiles
    ones: Tensor  # of tiles that are weighted already


def _make_past(call: _Call) -> _Past:
    plan, operands, S = call.plan, call.operands, call.S
    nothing, layout, heads = operands.nothing, plan.layout, plan.heads.value
    if S is None and call.stretches == 1:
        return _Past(Columns(), *(nothing for _ in _Past._fields[1:]))
    columns, decayed = columns_to_end(plan, operands, exact=False)
    sequences = plan.sequences if S is not None else call.longer(1)
    carried = room(sequences, heads, layout.rows, plan.V, like=operands.v, dtype=torch.float32)
    states = room(*carried.shape, like=operands.v, dtype=plan.dtype)
    reads = room(sequences, heads, call.shares, plan.C, plan.V, like=operands.v, dtype=torch.float32)
    unread = room(sequences, heads, plan.C, plan.V, like=operands.v, dtype=torch.float32)
    channels = weights = ones = nothing
    tables = read_tables(layout, operands.v.device) if plan.p > 2 or S is not None else operands.tables
    if plan.p > 2:
        channels, weights, ones = tables.channels, tables.weights, tables.weights.new_ones(layout.outers)
    if S is not None:
        tiled = tile_state(plan, operands, S, S.new_zeros(S.shape[:-1]))
        assert tiled is not None
        carried.copy_(tiled[..., : layout.rows * plan.V].view_as(carried))
        states.copy_(carried if call.sizes.hopper else carried * tables.row_weights[:, None])
    return _Past(columns, decayed, carried, states, reads, unread, channels=channels, weights=weights, ones=ones)


def _read(call: _Call, past: _Past, index: int) -> None:
    (sizes, plan, operands, *_), layout, heads, columns = call, call.plan.layout, call.plan.heads, past.columns.keys
    given = operands.k, operands.or_nothing(columns), operands.v, *call.gates, past.states
    tensors = (*given, past.reads, past.unread, call.arrived, *call.places)
    grid = call.parts * call.shares, heads.value, call.longer(index)
    blocks = plan.programs(sizes.read_block)
    if sizes.hopper:
        from zoo.kernels.delta.triton.hopper import read_tiles_kernel, share_bounds

        trips = 4 if plan.K == 64 else 2  # more take more shared memory
        launch(
            read_tiles_kernel, grid, tensors,
            (plan.tokens, plan.C, index, layout.rows, heads.key, heads.value, blocks),
            K=plan.K, V=plan.V, GATED=plan.gated, PACKED=plan.packed, SHARES=call.shares,
            BEGINS=share_bounds(plan.K, trips, call.shares), TRIPS=trips, STAGES=2,
            warps=4, overlaps=True,
        )  # fmt: skip
        return
    launcher(read_kernel)[grid](
        *tensors, past.channels, past.ones,
        plan.tokens, plan.C, index, layout.outers, layout.rows, heads.key, heads.value, blocks,
        K=plan.K, V=plan.V, P=plan.p, INNER=layout.inner, BLOCK=sizes.read_block, SHARES=call.shares, **call.gated,
        **call.kinds, num_warps=sizes.read_warps, num_stages=3,
    )  # fmt: skip


def _solve(call: _Call, past: _Past, inverses: Tensor, errors: Errors, index: int) -> None:
    sizes, plan, operands, beta, *_ = call
    launcher(solve_kernel)[(call.blocks * (plan.V // sizes.solve_values), plan.heads.value, call.longer(index))](
        operands.v, beta, inverses, past.unread, *errors, *call.places,
        plan.tokens, plan.C, index, plan.heads.value, call.blocks,
        C=sizes.chunk, V=plan.V, VALUES=sizes.solve_values, MEETS=sizes.solve_meets, HAS_INITIAL=call.S is not None,
        PACKED=plan.packed, OVERLAPS=sizes.hopper, PRECISION=plan.precision, num_warps=sizes.solve_warps,
        num_stages=3, launch_pdl=sizes.hopper,
    )  # fmt: skip


def _write(call: _Call, past: _Past, errors: Errors, index: int) -> None:
    (sizes, plan, operands, *_), layout, heads, columns = call, call.plan.layout, call.plan.heads, past.columns.keys
    given = operands.or_nothing(columns), past.decayed, *call.gates, errors.written
    tensors, together = (*given, past.carried, past.states, *call.places), call.longer(index + 1)
    if sizes.hopper:
        from zoo.kernels.delta.triton.hopper import write_tiles_kernel

        programs = layout.rows // 128 * (plan.V // 64)  # of two tiles each
        launch(
            write_tiles_kernel, (programs, heads.value, together), tensors,
            (plan.tokens, plan.C, index, layout.rows, heads.key, heads.value),
            K=plan.K, V=plan.V, HAS_INITIAL=call.S is not None, GATED=plan.gated, PACKED=plan.packed,
            TILES=2, STAGES=4, warps=4, overlaps=True,
        )  # fmt: skip
        return
    launcher(write_kernel)[(sum(-(-prefix // 2) for prefix in layout.prefixes), heads.value, together)](
        *tensors, past.channels, past.weights,
        plan.tokens, plan.C, index, layout.outers, layout.rows, heads.key, heads.value,
        K=plan.K, V=plan.V, P=plan.p, INNER=layout.inner, BLOCK=sizes.write_block, HAS_INITIAL=call.S is not None,
        **call.gated, **call.kinds, num_warps=sizes.write_warps, num_stages=2,
    )  # fmt: skip
