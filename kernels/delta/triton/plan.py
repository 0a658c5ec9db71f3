"""What one call's launches follow from: sizes, chunks and block sizes. No tensors, no launches."""

import math
from typing import NamedTuple

import torch

from zoo.kernels.delta.call import Inputs, Options
from zoo.kernels.power.heads import Heads
from zoo.kernels.triton_support import INTERPRETED
from zoo.kernels.wanted import Wanted

__all__ = [
    "Plan", "Sizes", "count_groups", "fill_width", "group_length", "make_plan", "most_groups", "product_precision",
    "sizes_for", "using", "wanted",
]  # fmt: skip

PROGRAMS = 128  # about as many as a GPU runs side by side
SHORTEST = 16  # chunks of a group
WIDTHS = (16, 32, 64, 128)


class Sizes(NamedTuple):
    """Warps and registers of the kernels, values or channels of a program, and stages: not tuned at start-up.

    More than a warp for each 16 tokens would compute tiles twice.
    """

    chunk: int = 32  # C, at most
    prepare_warps: int = 1
    prepare_stages: int = 3
    state_block: int = 64  # columns of a state that a program carries
    state_warps: int = 4
    state_stages: int = 2
    compose_registers: int = 128  # of a thread, at most, so that all groups are composed side by side
    output_block: int = 64
    output_warps: int = 4
    output_stages: int = 2
    incoming_warps: int = 2  # of RWKV-7's kernels alone, as the next is
    value_block: int = 32  # values at a time
    key_block: int = 64  # channels of a program
    key_values: int = 32  # values at a time
    key_warps: int = 2
    group: int = 0  # chunks that are composed, 0 chooses


# Over 64 channels or values.
_WIDE = Sizes(state_stages=3, compose_registers=255, output_stages=3, key_values=64)
# Each channel with a gate.
_CHANNELS = Sizes(prepare_warps=2, prepare_stages=1, key_values=64, key_warps=4)
_WIDE_CHANNELS = _CHANNELS._replace(prepare_warps=4, compose_registers=255, key_values=32)
# Three products for each one, of operands twice as large.
_FLOAT = Sizes(prepare_warps=4, state_block=16, compose_registers=255, output_block=16, key_block=32, key_warps=4)
_wanted: Wanted[Sizes] = Wanted()
using = _wanted.using


def wanted() -> Sizes | None:
    """The sizes that all calls shall take, if there are any."""
    return _wanted.sizes


def sizes_for(dtype: torch.dtype, K: int, V: int, *, channels: bool) -> Sizes:
    """The sizes of a call that asks for none: with which no kernel for a Hopper GPU spills much (see the budget)."""
    if dtype != torch.bfloat16:
        return _FLOAT
    wide = max(K, V) > 64
    if channels:
        return _WIDE_CHANNELS if wide else _CHANNELS
    return _WIDE if wide else Sizes()


class Plan(NamedTuple):
    """Tokens are cut into chunks of C, each with a slot; no chunk spans two sequences (see power attention's plan).

    Products are of `dtype`, sums and carried states of float32. float16 is computed in float32, for the range that
    states need.
    """

    heads: Heads
    batch: int  # B
    tokens: int  # T
    K: int  # filled up, as V is
    V: int
    scale: float
    gated: bool
    channels: bool  # whether each key channel has a gate
    corrects: bool  # whether there is a beta
    packed: bool
    dtype: torch.dtype
    precision: str  # of products, as Triton names it
    exact: bool  # what chunks make of keys is computed in float64
    sizes: Sizes
    C: int
    slots: int
    sequences: int  # rows of the state

    @property
    def sums_dtype(self) -> torch.dtype:
        """Of channels' sums of gates, of which one that forgets takes digits of differences after it."""
        return torch.float32 if self.dtype == torch.bfloat16 else torch.float64

    @property
    def inverse_dtype(self) -> torch.dtype:
        """Of inverses that are kept, whose entries are small, but cancel."""
        return torch.float16 if self.dtype == torch.bfloat16 else torch.float32

    @property
    def inverse_parts(self) -> int:
        """Numbers of `dtype` that add up to one of an inverse, whose digits matter more than other operands'."""
        return 2 if self.dtype == torch.bfloat16 else 1

    @property
    def levels(self) -> int:
        """How often a chunk is halved."""
        return self.C.bit_length() - 1

    @property
    def chunks(self) -> int:
        """Of a sequence that is not packed."""
        return self.slots // max(1, self.batch)


def product_precision(dtype: torch.dtype) -> str:
    """Of products of tokens of this dtype, as Triton names it; see `Plan`."""
    # Under the interpreter there are no tensor cores to round for.
    return "tf32" if dtype == torch.bfloat16 and not INTERPRETED else "tf32x3"


def fill_width(width: int) -> int:
    """The width that the kernels take for this one."""
    return next(x for x in WIDTHS if x >= width)


def _chunk_length(sizes: Sizes, options: Options) -> int:
    """Tokens a chunk: a power of two, at most what is wanted, but 16 at least, which products of blocks take."""
    chunk = sizes.chunk
    return min(chunk, 1 << max(4, options.chunk_size.bit_length() - 1)) if options.chunk_size else chunk


def _count_slots(inputs: Inputs, C: int) -> int:
    """Slots of chunks: of packed sequences `ceil(T / C)` and one more each, which needs no word from the device."""
    B, T = inputs.q.shape[:2]
    return B * -(-T // C) if inputs.cu_seqlens is None else -(-T // C) + inputs.rows


def make_plan(inputs: Inputs, options: Options) -> Plan:
    """The plan of both passes of a call."""
    q, k, v, log_g = inputs[:4]
    K, V = fill_width(int(k.shape[-1])), fill_width(int(v.shape[-1]))
    sizes = _wanted.sizes or sizes_for(q.dtype, K, V, channels=inputs.gates_channels)
    C = _chunk_length(sizes, options)
    return Plan(
        heads=Heads(q.shape[2], k.shape[2], v.shape[2]),
        batch=q.shape[0],
        tokens=q.shape[1],
        K=K,
        V=V,
        scale=options.scale,
        gated=log_g is not None,
        channels=inputs.gates_channels,
        corrects=inputs.beta is not None,
        packed=inputs.cu_seqlens is not None,
        dtype=torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32,
        precision=product_precision(q.dtype),
        exact=q.dtype == torch.float32,
        sizes=sizes,
        C=C,
        slots=_count_slots(inputs, C),
        sequences=inputs.rows,
    )


def group_length(plan: Plan) -> int:
    """Chunks that are composed to one step: all of a sequence where that keeps the GPU busy, or is short.

    Otherwise half as many as there are groups, or more, where fewer groups keep the GPU busy: a group is joined in less
    time than a chunk takes in the other kernels.
    """
    if plan.sizes.group:
        return plan.sizes.group
    whole = plan.slots if plan.packed else plan.chunks
    rows, programs = 1 if plan.packed else plan.batch, _programs(plan)
    if whole <= SHORTEST or rows * programs >= PROGRAMS:
        return whole
    return max(SHORTEST, math.isqrt(plan.slots - 1) // 2 + 1, plan.slots * programs // (2 * PROGRAMS))


def _programs(plan: Plan) -> int:
    """Of a group."""
    return plan.heads.value * max(1, plan.V // plan.sizes.state_block)


def count_groups(plan: Plan) -> int:
    """Groups of chunks that are composed; none where a group is a sequence."""
    length = group_length(plan)
    groups = -(-plan.slots // length)
    return groups if groups > 1 and (plan.packed or length != plan.chunks) else 0


def most_groups(plan: Plan) -> int:
    """As many as there can be, or a few more: so much the compiler can say of a length that it does not know."""
    # Never one, which would be a case of its own there.
    most = plan.slots // (plan.sizes.group or SHORTEST) + 2
    if plan.sizes.group:
        return most
    # Of longer groups, whose length is rounded down.
    enough = -(-2 * PROGRAMS * (SHORTEST + 1) // (SHORTEST * _programs(plan))) + 1
    return torch.sym_min(most, enough)
