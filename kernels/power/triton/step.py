# mypy: disable-error-code="no-untyped-def, assignment"
"""One decoded token on a GPU: a state's update and what its queries read, in one pass over the state.

Decoding is bandwidth: each number of a state is loaded once, updated, read by all queries that share it, and stored. A
program takes a block of a state's rows. Where a state has several programs, a second kernel adds up what they have
read, always in the same order, so that two runs give the same bits.

There are no tables: which channels a row multiplies follows from its number. So nothing is copied to the device, and
nothing has to live as long as a CUDA graph does.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.cuda import device_of

from zoo.kernels.power.call import Step
from zoo.kernels.power.supported import POWERS, WIDTHS
from zoo.kernels.power.triton.monomials import count_monomials, power
from zoo.kernels.power.triton.output import VANISHING
from zoo.kernels.triton_support import DTYPES, INTERPRETED

__all__ = [
    "StepBlocks", "finish", "finish_kernel", "monomials", "own_weight", "row_channels", "step_blocks", "step_kernel",
    "supports_triton_step", "triton_step",
]  # fmt: skip

PROGRAMS = 1056  # that run at a time: 8 on each of the 132 multiprocessors of an H100 or H200
MANY_STATES, FEW_TRIPS = 128, 8  # with so many states, so few trips are not worth a second kernel
MOST_SPLITS = 256
MOST_QUERIES = 32  # a state: each keeps what it has read in registers
LANES = 64 if torch.version.hip else 32
FINISH_BLOCK = 32


@triton.jit
def _most_channels(count, DEGREE: tl.constexpr):
    """The most channels that have no more than `count` monomials of this degree."""
    if DEGREE == 1:
        return count
    x = count.to(tl.float32)
    if DEGREE == 2:
        root = tl.sqrt(2 * x + 0.25) - 0.5
    elif DEGREE == 3:
        root = tl.exp2(tl.log2(6 * x + 1) * (1 / 3)) - 1
    else:
        root = tl.sqrt(tl.sqrt(24 * x + 1) + 1.25) - 1.5
    n = (root - 0.1).to(tl.int32)  # right or one too low, however the root was rounded
    return n + (count_monomials(n + 1, DEGREE) <= count).to(tl.int32)


@triton.jit
def row_channels(row, K: tl.constexpr, P: tl.constexpr, D: tl.constexpr):
    """The P channels that rows of a state multiply, from first to last, and their multinomial coefficients.

    Seen from the end, rows whose channels are among the last n come first, and they are as many as n channels have
    monomials: that gives a row's first channel. Within the rows that share it, its second channel follows likewise.
    """
    after = tl.maximum(D - 1 - row, 0)
    later = _most_channels(after, P)
    channels = (K - 1 - later,)
    # P!, over the factorial of how many times each channel occurs.
    coefficient = tl.full(later.shape, 1, tl.float32)
    times = tl.full(later.shape, 1, tl.int32)
    for place in tl.static_range(1, P):
        after -= count_monomials(later, P - place + 1)
        later = _most_channels(after, P - place)
        channels += (K - 1 - later,)
        times = tl.where(channels[place] == channels[place - 1], times + 1, 1)
        inverse = tl.where(times == 1, 1.0, tl.where(times == 2, 1 / 2, tl.where(times == 3, 1 / 3, 1 / 4)))
        coefficient *= inverse * (place + 1)
    return channels, coefficient


@triton.jit
def _scaled(x, channel, scale, constant, K: tl.constexpr, OFFSET: tl.constexpr):
    """`scale * x` at a channel, and the constant at the last one, which follows x's K, if OFFSET."""
    value = tl.load(x + (tl.minimum(channel, K - 1) if OFFSET else channel)).to(tl.float32) * scale
    return tl.where(channel < K, value, constant) if OFFSET else value


@triton.jit
def monomials(x, channels, scale, constant, K: tl.constexpr, P: tl.constexpr, OFFSET: tl.constexpr):
    """The product of `scale * x` over channels, one of which may be the constant."""
    product = _scaled(x, channels[0], scale, constant, K, OFFSET)
    for place in tl.static_range(1, P):
        product *= _scaled(x, channels[place], scale, constant, K, OFFSET)
    return product


@triton.jit
def own_weight(q, k, scale, constant, K: tl.constexpr, P: tl.constexpr):
    """`(constant + scale q . k)^P` of a token's query and its own key, as the forward pass has it.

    Read back from the state it would be a sum of monomials that cancel. All threads must have the same bits, for one
    writes the denominator and others the numerators: a product of float64 is exact, fused with a sum or not.
    """
    channel = tl.arange(0, K)
    query = (tl.load(q + channel).to(tl.float32) * scale).to(tl.float64)
    score = tl.sum(query * tl.load(k + channel).to(tl.float64), 0)
    return power((score + constant).to(tl.float32), P)


@triton.jit
def _ratio(numerator, denominator):
    """`numerator / denominator`, zero where the denominator vanishes."""
    vanishes = tl.abs(denominator) < VANISHING
    return tl.where(vanishes, 0.0, tl.div_rn(numerator, tl.where(vanishes, 1.0, denominator)))


@triton.jit
def step_kernel(
    q, k, v, log_g, S, z, offset, o, partial, scale,
    q_batch, q_head, k_batch, k_head, v_batch, v_head,
    Q_HEADS, K_HEADS, V_HEADS, STATES, ROWS, SPLITS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    GATED: tl.constexpr, NORMALIZE: tl.constexpr, OFFSET: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Update ROWS rows of `S [B, Hs, D, V]` and `z [B, Hs, D]`, and read them with the GROUP query heads of a state.

    q `[B, Hq, K]`, k `[B, Hk, K]` and v `[B, Hv, V]` come with the strides of batch and heads; log_g is `[B, Hv]`,
    and offset `[Hq]`, float32, if OFFSET: keys then have one more channel, the last one, which is 1.
    WHOLE: a program has all rows, and writes o `[B, Ho, V]`. Otherwise what it has read goes to `partial`, see
    `finish_kernel`.

    A trip takes DEPTH tiles of WIDTH rows, where a thread has 16 bytes of one row. So it adds up rows by itself, until
    the end; and it finds a row's channels by itself too, which the many threads of a row do again and again, but that
    takes less time than memory does.
    """
    program = tl.program_id(0)
    state, split = program // SPLITS, program % SPLITS
    batch, head = (state // STATES).to(tl.int64), state % STATES
    S += state.to(tl.int64) * D * V
    z += state.to(tl.int64) * D
    first = split * ROWS
    last = tl.minimum(first + ROWS, D)

    k += batch * k_batch + head * K_HEADS // STATES * k_head
    CHANNELS: tl.constexpr = K + 1 if OFFSET else K
    queries, constants = (), ()
    for member in tl.static_range(GROUP):
        query_head = (head * GROUP + member) * Q_HEADS // (STATES * GROUP)
        queries += (q + batch * q_batch + query_head * q_head,)
        constants += (tl.load(offset + query_head) if OFFSET else 0.0,)
    value = tl.arange(0, V)
    v_row = tl.load(v + batch * v_batch + head * V_HEADS // STATES * v_head + value).to(tl.float32)
    gate = 1.0
    if GATED:  # in float64: exp2 of a rounded product would be off by more than the state is rounded
        log_gate = tl.load(log_g + batch * V_HEADS + head * V_HEADS // STATES)
        gate = tl.exp(log_gate.to(tl.float64)).to(tl.float32)

    numerators = ()
    for _ in tl.static_range(GROUP):
        numerators += (tl.zeros((WIDTH, V), tl.float32),)
    for start in range(first, last, DEPTH * WIDTH):
        # All loads come before the stores, which they may not pass.
        rows, old, new = (), (), ()
        for depth in tl.static_range(DEPTH):
            rows += (start + depth * WIDTH + tl.arange(0, WIDTH)[:, None],)
            old += (tl.load(S + rows[depth] * V + value[None, :], rows[depth] < last, 0),)
        for depth in tl.static_range(DEPTH):
            channels, coefficient = row_channels(rows[depth], CHANNELS, P, D)
            kept = gate * old[depth]
            new += (kept + monomials(k, channels, 1.0, 1.0, K, P, OFFSET) * v_row[None, :],)
            coefficient = tl.where(rows[depth] < last, coefficient, 0.0)
            sums = ()
            for member in tl.static_range(GROUP):
                query = coefficient * monomials(queries[member], channels, scale, constants[member], K, P, OFFSET)
                sums += (numerators[member] + query * kept,)
            numerators = sums
        for depth in tl.static_range(DEPTH):
            tl.store(S + rows[depth] * V + value[None, :], new[depth], rows[depth] < last)

    # A loop of its own, where every number has one thread only: else one could store before another loads.
    denominators = ()
    for _ in tl.static_range(GROUP):
        denominators += (tl.zeros((BLOCK,), tl.float32),)
    for start in range(first, last, BLOCK):
        row = start + tl.arange(0, BLOCK)
        exists = row < last
        channels, coefficient = row_channels(row, CHANNELS, P, D)
        kept = gate * tl.load(z + row, exists, 0)
        if NORMALIZE:
            weighted = tl.where(exists, coefficient * kept, 0.0)
            sums = ()
            for member in tl.static_range(GROUP):
                query = monomials(queries[member], channels, scale, constants[member], K, P, OFFSET)
                sums += (denominators[member] + query * weighted,)
            denominators = sums
        tl.store(z + row, kept + monomials(k, channels, 1.0, 1.0, K, P, OFFSET), exists)

    for member in tl.static_range(GROUP):
        numerator, denominator = tl.sum(numerators[member], 0), tl.sum(denominators[member], 0)
        if first == 0:  # one of a state's programs adds what the token gives itself
            weight = own_weight(queries[member], k, scale, constants[member], K, P)
            numerator += weight * v_row
            denominator += weight
        output = state.to(tl.int64) * GROUP + member
        if WHOLE:
            if NORMALIZE:
                numerator = _ratio(numerator, denominator)
            tl.store(o + output * V + value, numerator.to(o.dtype.element_ty))
        else:
            at = output * SPLITS + split
            tl.store(partial + at * V + value, numerator)
            if NORMALIZE:
                tl.store(partial + tl.num_programs(0).to(tl.int64) * GROUP * V + at, denominator)


@triton.jit
def finish(partial, o, output, OUTPUTS, SPLITS, V: tl.constexpr, BLOCK: tl.constexpr, NORMALIZE: tl.constexpr):
    """One of OUTPUTS outputs o `[B Ho, V]` from `partial`: numerators `[B Ho, SPLITS, V]`, and denominators
    `[B Ho, SPLITS]` behind them.
    """
    output = output.to(tl.int64)
    totals = partial + (tl.cast(OUTPUTS, tl.int64) * V + output) * SPLITS
    partial += output * SPLITS * V
    value = tl.arange(0, V)
    numerators = tl.zeros((BLOCK, V), tl.float32)
    denominators = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, SPLITS, BLOCK):
        split = start + tl.arange(0, BLOCK)
        exists = split < SPLITS
        numerators += tl.load(partial + split[:, None] * V + value[None, :], exists[:, None], 0)
        if NORMALIZE:
            denominators += tl.load(totals + split, exists, 0)
    numerator = tl.sum(numerators, 0)
    if NORMALIZE:
        numerator = _ratio(numerator, tl.sum(denominators, 0))
    tl.store(o + output * V + value, numerator.to(o.dtype.element_ty))


@triton.jit
def finish_kernel(partial, o, SPLITS, V: tl.constexpr, BLOCK: tl.constexpr, NORMALIZE: tl.constexpr):
    """What programs have read, added up; see `finish`."""
    finish(partial, o, tl.program_id(0), tl.num_programs(0), SPLITS, V, BLOCK, NORMALIZE)


class StepBlocks(NamedTuple):
    """How a step is cut."""

    splits: int  # programs a state
    rows: int  # of a program
    depth: int  # tiles a trip
    warps: int

    def width(self, V: int) -> int:
        """Rows of a tile: a thread takes 16 bytes."""
        return self.warps * LANES * 4 // V


def step_blocks(states: int, D: int, V: int, *, programs: int = PROGRAMS, depth: int = 4, warps: int = 4) -> StepBlocks:
    """Cut so many states of D rows such that programs, of which so many run at a time, leave few places idle.

    The time is a program's trips, times how often programs take turns; of splits within a tenth, the fewest.
    """
    trip = depth * StepBlocks(1, D, depth, warps).width(V)
    trips = triton.cdiv(D, trip)
    most = trips if states < MANY_STATES else max(1, trips // FEW_TRIPS)
    choices = range(1, min(triton.cdiv(4 * programs, states), most, MOST_SPLITS) + 1)
    times = [triton.cdiv(states * splits, programs) * triton.cdiv(trips, splits) for splits in choices]
    splits = next(splits for splits, time in zip(choices, times, strict=True) if time <= 1.1 * min(times))
    rows = triton.cdiv(trips, splits) * trip
    return StepBlocks(triton.cdiv(D, rows), rows, depth, warps)


def supports_triton_step(step: Step) -> bool:
    """Whether the kernels take these inputs, and can write the state where it is."""
    (q, k, v, _, S, z, *_), p = step, step.p
    return (
        (S.is_cuda or INTERPRETED)
        and S.dtype == z.dtype == torch.float32
        and S.is_contiguous()
        and z.is_contiguous()
        and all(x.dtype in DTYPES for x in (q, k, v))
        and k.shape[-1] in WIDTHS
        and v.shape[-1] in WIDTHS
        and p in POWERS
        and step.heads.queries_per_state <= MOST_QUERIES
    )


def triton_step(step: Step, blocks: StepBlocks | None = None) -> Tensor:
    """See `zoo.kernels.power.step.step_in_place`; blocks: None for those that suit the sizes."""
    q, k, v, log_g, S, z, offset, p, scale, normalize = step
    heads = step.heads
    B, states, D, V = S.shape
    o = v.new_empty(B, heads.output, V)
    if B == 0:
        return o
    # Channels have to lie side by side; heads and batch may lie anywhere, as they do in one projection's output.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    log_g = None if log_g is None else log_g.contiguous()
    offset = None if offset is None else offset.contiguous()
    blocks = step_blocks(B * states, D, V) if blocks is None else blocks
    whole = blocks.splits == 1
    partial = o if whole else S.new_empty(B * heads.output * blocks.splits * (V + 1))
    with device_of(S):
        step_kernel[(B * states * blocks.splits,)](
            q, k, v, S if log_g is None else log_g, S, z, S if offset is None else offset, o, partial, scale,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            heads.query, heads.key, heads.value, states, blocks.rows, blocks.splits,
            K=k.shape[-1], V=V, P=p, D=D, GROUP=heads.queries_per_state,
            BLOCK=4 * LANES * blocks.warps, DEPTH=blocks.depth, WIDTH=blocks.width(V),
            GATED=log_g is not None, NORMALIZE=normalize, OFFSET=offset is not None, WHOLE=whole,
            num_warps=blocks.warps,
        )  # fmt: skip
        if not whole:
            finish_kernel[(B * heads.output,)](
                partial, o, blocks.splits, V=V, BLOCK=FINISH_BLOCK, NORMALIZE=normalize, num_warps=4
            )
    return o
