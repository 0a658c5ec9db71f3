# mypy: disable-error-code="no-untyped-def, assignment"
"""One decoded token beside a journal on a GPU: what its queries read, and what then enters the sums.

Decoding is bandwidth: each number of a state is loaded once and none is stored, but every so many tokens. A program of
the first kernel takes a block of a state's rows, and a part of its journal; one of them takes the new token. The second
kernel adds up what they have read, always in the same order. Then its programs have the oldest tokens of a journal that
is full enter the sums, and otherwise end at once. Which it is, each program sees for its row: one CUDA graph does for
all.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.cuda import device_of

from zoo.kernels.power.call import Fold, JournalStep
from zoo.kernels.power.expansion import state_size
from zoo.kernels.power.supported import POWERS, WIDTHS
from zoo.kernels.power.triton.monomials import power
from zoo.kernels.power.triton.step import (
    FINISH_BLOCK,
    LANES,
    MOST_QUERIES,
    finish,
    monomials,
    own_weight,
    row_channels,
)
from zoo.kernels.triton_support import DTYPES, INTERPRETED

__all__ = [
    "JournalBlocks", "fold_kernel", "journal_blocks", "read_kernel", "settle_kernel", "supports_triton_fold",
    "supports_triton_journal", "triton_fold", "triton_journal_step",
]  # fmt: skip

FORGETS = tl.constexpr(-(2.0**14))  # as `zoo.kernels.power.journal.FORGETS`
FOLD_ROWS = 32  # of a state's, in one product with FOLD_TOKENS that enter it
FOLD_TOKENS = 16
READING_PROGRAMS = 1584  # 12 on each of the 132 multiprocessors of an H100 or H200; 16 would run at a time, slower
READING_WARPS = 1
ROW_DEPTH, TOKEN_DEPTH = 16, 8  # pieces of 16 bytes that are on their way to a thread
FOLDING_PROGRAMS = 396  # that run at a time: 3 on each of the 132 multiprocessors of an H100 or H200


@triton.jit
def _slot(origin, index, L):
    """Where in the ring the token `index` stands, counted from the one in slot `origin`; index from -1 to L - 1."""
    slot = origin + index
    slot = tl.where(slot < 0, slot + L, slot)
    return tl.where(slot >= L, slot - L, slot)


@triton.jit
def _decays(later, earlier):
    """Decays of tokens, of which log gates are summed up to `earlier`; the difference is taken before it is rounded."""
    return tl.exp((later - earlier).to(tl.float32))


@triton.jit
def _kept(later, earlier):
    """The decay of sums, which they carry on: with an exponential in float64."""
    return tl.exp(later - earlier).to(tl.float32)


@triton.jit
def _read_sums(
    queries, constants, S, z, first, last, scale,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, NORMALIZE: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """What each of GROUP queries reads of rows from `first` to `last`: numerators `[V]`, and denominators.

    A trip takes DEPTH times WIDTH rows, of which a thread has 16 bytes of each WIDTH: all that is on its way at once,
    and a thread adds up DEPTH of them by itself. What a row is weighted with is one thread's to find, before it goes to
    those that have a piece of it.
    """
    CHANNELS: tl.constexpr = K + 1 if OFFSET else K
    TRIP: tl.constexpr = DEPTH * WIDTH
    value = tl.arange(0, V)
    here = tl.arange(0, DEPTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    numerators, denominators = (), ()
    for _ in tl.static_range(GROUP):
        numerators += (tl.zeros((WIDTH, V), tl.float32),)
        denominators += (tl.zeros((TRIP,), tl.float32),)
    for trip in tl.range(first, last, TRIP, num_stages=STAGES):
        places = (trip + here)[:, :, None]
        read = tl.load(S + places * V + value[None, None, :], places < last, 0)
        row = trip + tl.arange(0, TRIP)
        channels, coefficient = row_channels(row, CHANNELS, P, D)
        coefficient = tl.where(row < last, coefficient, 0.0)
        if NORMALIZE:
            normaliser = tl.load(z + row, row < last, 0)
        sums, totals = (), ()
        for member in tl.static_range(GROUP):
            query = coefficient * monomials(queries[member], channels, scale, constants[member], K, P, OFFSET)
            spread = tl.reshape(query, (DEPTH, WIDTH))[:, :, None]
            sums += (numerators[member] + tl.sum(spread * read, 0),)
            totals += (denominators[member] + query * normaliser if NORMALIZE else denominators[member],)
        numerators, denominators = sums, totals
    sums, totals = (), ()
    for member in tl.static_range(GROUP):
        sums += (tl.sum(numerators[member], 0),)
        totals += (tl.sum(denominators[member], 0) if NORMALIZE else 0.0,)
    return sums, totals


@triton.jit
def _read_tokens(
    queries, constants, keys, values, gates, origin, low, high, total, L, K_HEADS, V_HEADS, scale,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, GROUP: tl.constexpr,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """As `_read_sums`, of the journal's tokens from `low` to `high`, whose weights are as they are defined."""
    TILE: tl.constexpr = DEPTH * WIDTH
    channel, value = tl.arange(0, K), tl.arange(0, V)
    here = tl.arange(0, DEPTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    vectors, numerators, denominators = (), (), ()
    for member in tl.static_range(GROUP):
        vectors += ((tl.load(queries[member] + channel).to(tl.float32) * scale)[None, None, :],)
        numerators += (tl.zeros((WIDTH, V), tl.float32),)
        denominators += (tl.zeros((WIDTH,), tl.float32),)
    for tile in tl.range(low, high, TILE, num_stages=STAGES):
        index = tile + here
        exists = index < high
        slot = _slot(origin, index, L)[:, :, None]
        key = tl.load(keys + slot * (K_HEADS * K) + channel[None, None, :], exists[:, :, None], 0)
        held = tl.load(values + slot * (V_HEADS * V) + value[None, None, :], exists[:, :, None], 0)
        token = tile + tl.arange(0, TILE)
        earlier = tl.load(gates + _slot(origin, token, L) * V_HEADS, token < high, 0)
        decay = tl.reshape(_decays(total, earlier), (DEPTH, WIDTH))
        key, held = key.to(tl.float32), held.to(tl.float32)
        sums, totals = (), ()
        for member in tl.static_range(GROUP):
            score = tl.sum(key * vectors[member], 2) + constants[member]
            weight = tl.where(exists, power(score, P) * decay, 0.0)
            sums += (numerators[member] + tl.sum(weight[:, :, None] * held, 0),)
            totals += (denominators[member] + tl.sum(weight, 0) if NORMALIZE else denominators[member],)
        numerators, denominators = sums, totals
    sums, totals = (), ()
    for member in tl.static_range(GROUP):
        sums += (tl.sum(numerators[member], 0),)
        totals += (tl.sum(denominators[member], 0) if NORMALIZE else 0.0,)
    return sums, totals


@triton.jit
def read_kernel(
    q, k, v, log_g, S, z, keys, values, gates, folded, position, offset, partial, begun, scale,
    q_batch, q_head, k_batch, k_head, v_batch, v_head,
    L, Q_SHARED, K_SHARED, V_SHARED, K_HEADS, V_HEADS, ROWS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr,
    ROW_DEPTH: tl.constexpr, ROW_WIDTH: tl.constexpr, ROW_STAGES: tl.constexpr,
    TOKEN_DEPTH: tl.constexpr, TOKEN_WIDTH: tl.constexpr, TOKEN_STAGES: tl.constexpr,
    GATED: tl.constexpr, NORMALIZE: tl.constexpr, OFFSET: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Read ROWS rows of `S [B, Hs, D, V]` and `z [B, Hs, D]`, and a share of the journal, with the GROUP query heads of
    a state; the first of a state's programs appends the new token, and meets it. Programs are `[B, Hs, splits]`.

    q `[B, Hq, K]`, k `[B, Hk, K]` and v `[B, Hv, V]` come with the strides of batch and heads; log_g is `[B, Hv]`,
    and offset `[Hq]`, float32, if OFFSET. The journal is `keys [B, L, Hk, K]`, `values [B, L, Hv, V]` and `gates
    [B, L, Hv]`. A head of keys is shared by K_SHARED states, one of values by V_SHARED, one of queries by Q_SHARED
    outputs. What has been read goes to `partial`, see `settle_kernel`, and where a row's journal began to `begun`.
    """
    if OVERLAP:  # the second kernel's programs may come as soon as there is room, and wait there
        tl.extra.cuda.gdc_launch_dependents()
    split, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    SPLITS, STATES = tl.num_programs(0), tl.num_programs(1)
    at = tl.load(position + batch)
    start = tl.load(folded + batch)
    state = batch * STATES + head
    key_head, value_head = head // K_SHARED, head // V_SHARED
    keys += batch * L * K_HEADS * K + key_head * K
    values += batch * L * V_HEADS * V + value_head * V
    gates += batch * L * V_HEADS + value_head

    count = tl.minimum(tl.maximum(at - start, 0), L - 1).to(tl.int32)  # in the journal, without this one; within memory
    origin = (start % L).to(tl.int32)
    total = tl.load(gates + _slot(origin, count - 1, L) * V_HEADS)
    if GATED:
        total += tl.maximum(tl.load(log_g + batch * V_HEADS + value_head).to(tl.float64), FORGETS)

    queries, constants, numerators, denominators = (), (), (), ()
    for member in tl.static_range(GROUP):
        query_head = (head * GROUP + member) // Q_SHARED
        queries += (q + batch * q_batch + query_head * q_head,)
        constants += (tl.load(offset + query_head) if OFFSET else 0.0,)
        numerators += (tl.zeros((V,), tl.float32),)
        denominators += (0.0,)

    value = tl.arange(0, V)
    if split == 0:  # first, while memory has nothing else to do yet
        channel, slot = tl.arange(0, K), _slot(origin, count, L)
        k += batch * k_batch + key_head * k_head
        v_row = tl.load(v + batch * v_batch + value_head * v_head + value)
        tl.store(keys + slot * K_HEADS * K + channel, tl.load(k + channel).to(keys.dtype.element_ty))
        tl.store(values + slot * V_HEADS * V + value, v_row.to(values.dtype.element_ty))
        tl.store(gates + slot * V_HEADS, total)
        tl.store(begun + batch, start)
        both, wholes = (), ()
        for member in tl.static_range(GROUP):
            weight = own_weight(queries[member], k, scale, constants[member], K, P)
            both += (weight * v_row.to(tl.float32),)
            wholes += (weight,)
        numerators, denominators = both, wholes

    # A share of as many tokens as there are by now: early on they are all that is read, and later on they are the last
    # programs', which have fewer rows.
    share = tl.maximum(tl.cdiv(count, SPLITS), TOKEN_DEPTH * TOKEN_WIDTH)
    low = (SPLITS - 1 - split) * share
    high = tl.minimum(low + share, count)
    if low < high:
        sums, totals = _read_tokens(
            queries, constants, keys, values, gates, origin, low, high, total, L, K_HEADS, V_HEADS, scale,
            K, V, P, GROUP, TOKEN_DEPTH, TOKEN_WIDTH, TOKEN_STAGES, NORMALIZE,
        )  # fmt: skip
        both, wholes = (), ()
        for member in tl.static_range(GROUP):
            both += (numerators[member] + sums[member],)
            wholes += (denominators[member] + totals[member],)
        numerators, denominators = both, wholes
    if start > 0:  # else sums are over nothing
        first = split * ROWS
        sums, totals = _read_sums(
            queries, constants, S + state * D * V, z + state * D, first, tl.minimum(first + ROWS, D), scale,
            K, V, P, D, GROUP, ROW_DEPTH, ROW_WIDTH, ROW_STAGES, NORMALIZE, OFFSET,
        )  # fmt: skip
        kept = _kept(total, tl.load(gates + _slot(origin, -1, L) * V_HEADS))
        both, wholes = (), ()
        for member in tl.static_range(GROUP):
            both += (numerators[member] + kept * sums[member],)
            wholes += (denominators[member] + kept * totals[member],)
        numerators, denominators = both, wholes

    behind = tl.num_programs(2).to(tl.int64) * STATES * GROUP * SPLITS * V
    for member in tl.static_range(GROUP):
        place = (state * GROUP + member) * SPLITS + split
        tl.store(partial + place * V + value, numerators[member])
        if NORMALIZE:
            tl.store(partial + behind + place, denominators[member])


@triton.jit
def _enter(
    S, z, S_out, z_out, keys, values, gates, start, fold, rows, L, K_HEADS, V_HEADS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Have the oldest `fold` tokens of a journal that begins at position `start` enter rows of one head's sums.

    The sums with them go to `S_out` and `z_out`, which may be where they are without.
    """
    CHANNELS: tl.constexpr = K + 1 if OFFSET else K
    value, token = tl.arange(0, V), tl.arange(0, BLOCK)
    origin = (start % L).to(tl.int32)
    end = tl.load(gates + _slot(origin, fold - 1, L) * V_HEADS)
    kept = _kept(end, tl.load(gates + _slot(origin, -1, L) * V_HEADS))
    channels, _ = row_channels(rows, CHANNELS, P, D)
    exists = rows < D
    old = tl.load(S + rows[:, None] * V + value[None, :], exists[:, None], 0)
    sums = tl.zeros(old.shape, tl.float32)
    normaliser = kept * tl.load(z + rows, exists, 0)
    for tile in range(0, fold, BLOCK):
        index = tile + token
        inside = index < fold
        slot = _slot(origin, index, L)
        key = keys + slot[None, :] * K_HEADS * K
        factors = tl.where(inside, _decays(end, tl.load(gates + slot * V_HEADS, inside, end)), 0.0)[None, :]
        product = factors + tl.zeros(rows.shape, tl.float32)[:, None]
        for place in tl.static_range(P):
            channel = channels[place][:, None]
            factor = tl.load(key + tl.minimum(channel, K - 1), inside[None, :], 0).to(tl.float32)
            product *= tl.where(channel < K, factor, 1.0) if OFFSET else factor
        held = tl.load(values + slot[:, None] * V_HEADS * V + value[None, :], inside[:, None], 0).to(tl.float32)
        sums = tl.dot(product, held, sums, input_precision=PRECISION)
        normaliser += tl.sum(product, 1)
    tl.store(S_out + rows[:, None] * V + value[None, :], kept * old + sums, exists[:, None])
    tl.store(z_out + rows, normaliser, exists)


@triton.jit
def _share_of_rows(
    S, z, S_out, z_out, keys, values, gates, start, fold, state, part, L, PARTS, K_HEADS, V_HEADS, STATES,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Have `fold` tokens from position `start` on enter one of PARTS shares of a state's rows, ROWS at a time."""
    batch, head = (state // STATES).to(tl.int64), state % STATES
    key_head, value_head = head * K_HEADS // STATES, head * V_HEADS // STATES
    offset = state.to(tl.int64) * D
    S, z, S_out, z_out = S + offset * V, z + offset, S_out + offset * V, z_out + offset
    keys += batch * L * K_HEADS * K + key_head * K
    values += batch * L * V_HEADS * V + value_head * V
    gates += batch * L * V_HEADS + value_head
    for first in range(part * ROWS, D, PARTS * ROWS):
        _enter(
            S, z, S_out, z_out, keys, values, gates, start, fold, first + tl.arange(0, ROWS), L,
            K_HEADS, V_HEADS, K, V, P, D, BLOCK, OFFSET, PRECISION,
        )  # fmt: skip


@triton.jit
def fold_kernel(
    S, z, S_out, z_out, keys, values, gates, folded, until,
    L, PARTS, K_HEADS, V_HEADS, STATES,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums over a row's first `until [B]` tokens, in PARTS programs a state, from those over `folded [B]`."""
    program = tl.program_id(0)
    state, part = program // PARTS, program % PARTS
    start = tl.load(folded + state // STATES)
    fold = tl.maximum(tl.load(until + state // STATES) - start, 0).to(tl.int32)
    _share_of_rows(
        S, z, S_out, z_out, keys, values, gates, start, fold, state, part, L, PARTS, K_HEADS, V_HEADS, STATES,
        K, V, P, D, ROWS, BLOCK, OFFSET, PRECISION,
    )  # fmt: skip


@triton.jit
def settle_kernel(
    partial, o, S, z, keys, values, gates, folded, position, begun,
    SPLITS, OUTPUTS, L, FOLD, KEEP, PARTS, FOLDING, K_HEADS, V_HEADS, STATES,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, D: tl.constexpr,
    FINISH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    NORMALIZE: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """o `[B Ho, V]`, OUTPUTS of them, from what `read_kernel` has left; and tokens that are due by now enter the sums
    (`zoo.kernels.power.journal.due`): each state's in PARTS programs, FOLDING in all, which take turns with ROWS rows
    each. A program has an output and a part, so that all run at a time.
    """
    program = tl.program_id(0)
    state, part, folds = program // PARTS, program % PARTS, program < FOLDING
    batch = (state // STATES).to(tl.int64)
    after = tl.load(position + batch, folds, 0) + 1
    until = tl.where(after < L - 1, 0, (after - KEEP) // FOLD * FOLD)
    if OVERLAP:  # until here nothing depends on the first kernel
        tl.extra.cuda.gdc_wait()
    start = tl.load(begun + batch, folds, 0)  # not `folded`, which another program may have changed
    if program < OUTPUTS:
        finish(partial, o, program, OUTPUTS, SPLITS, V, FINISH, NORMALIZE)
    until = tl.minimum(until, start + L - 1)  # of memory, whatever `folded` says
    if until > start:
        fold = (until - start).to(tl.int32)
        _share_of_rows(
            S, z, S, z, keys, values, gates, start, fold, state, part, L, PARTS, K_HEADS, V_HEADS, STATES,
            K, V, P, D, ROWS, BLOCK, OFFSET, PRECISION,
        )  # fmt: skip
        if part == 0 and state % STATES == 0:
            tl.store(folded + batch, until)


class JournalBlocks(NamedTuple):
    """How a step beside a journal is cut."""

    splits: int  # programs a state
    row_depth: int  # rows of the sums on their way to a thread, 16 bytes of each
    token_depth: int  # tokens of the journal, likewise
    warps: int
    row_stages: int = 1  # trips whose rows are on their way
    token_stages: int = 1
    overlap: bool = True  # the second kernel's programs come before the first one's have ended, where a GPU can do that

    def row_width(self, V: int) -> int:
        """Rows of which all threads have one piece."""
        return max(1, self.warps * LANES * 4 // V)

    def rows(self, D: int, V: int) -> int:
        """Rows of a program, of all D: whole trips."""
        trip = self.row_depth * self.row_width(V)
        return triton.cdiv(triton.cdiv(D, trip), self.splits) * trip

    def token_width(self, widest: int, size: int) -> int:
        """Tokens of which all threads have one piece, of keys or values of so many numbers of so many bytes."""
        return max(1, self.warps * LANES * 16 // (size * widest))


def journal_blocks(states: int, D: int, V: int, queries: int) -> JournalBlocks:
    """Cut so many states of D rows, so many queries each, into as many programs as run at a time, of a trip at least.

    Registers have what each query weights a token with, so that fewer tokens are on their way where queries are many.
    """
    blocks = JournalBlocks(1, ROW_DEPTH, max(1, TOKEN_DEPTH // queries), READING_WARPS)
    trips = triton.cdiv(D, ROW_DEPTH * blocks.row_width(V))
    return blocks._replace(splits=max(1, min(READING_PROGRAMS // states, trips)))


def supports_triton_journal(step: JournalStep) -> bool:
    """Whether the kernels take these inputs, and can write the state where it is."""
    state = (step.S, step.z, step.keys, step.values, step.gates, step.folded)
    return (
        (step.S.is_cuda or INTERPRETED)
        and step.S.dtype == step.z.dtype == torch.float32
        and all(x.is_contiguous() for x in (*state, step.position))
        and all(x.dtype in DTYPES for x in (step.q, step.k, step.v, step.keys))
        and step.k.shape[-1] in WIDTHS
        and step.v.shape[-1] in WIDTHS
        and step.p in POWERS
        and step.heads.queries_per_state <= MOST_QUERIES
    )


def triton_journal_step(step: JournalStep, blocks: JournalBlocks | None = None) -> Tensor:
    """See `zoo.kernels.power.journal_step.journal_step`; blocks: None for those that suit the sizes."""
    q, k, v, log_g, S, z, keys, values, gates, folded, position, offset, p, scale, normalize, fold, keep = step
    heads, K, L = step.heads, k.shape[-1], keys.shape[1]
    B, states, D, V = S.shape
    o = v.new_empty(B, heads.output, V)
    if B == 0:
        return o
    # Channels have to lie side by side; heads and batch may lie anywhere, as they do in one projection's output.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    log_g = None if log_g is None else log_g.contiguous()
    offset = None if offset is None else offset.contiguous()
    blocks = journal_blocks(B * states, D, V, heads.queries_per_state) if blocks is None else blocks
    splits, outputs, parts = blocks.splits, B * heads.output, _folding_parts(S)
    partial = S.new_empty(outputs * splits * (V + 1))
    begun = torch.empty_like(folded)
    overlap = blocks.overlap and _overlaps(S.device)
    options = {"launch_pdl": True} if overlap else {}
    with device_of(S):
        read_kernel[(splits, states, B)](
            q, k, v, S if log_g is None else log_g, S, z, keys, values, gates, folded, position,
            S if offset is None else offset, partial, begun, scale,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            L, heads.output // heads.query, states // heads.key, states // heads.value, heads.key, heads.value,
            blocks.rows(D, V),
            K=K, V=V, P=p, D=D, GROUP=heads.queries_per_state,
            ROW_DEPTH=blocks.row_depth, ROW_WIDTH=blocks.row_width(V), ROW_STAGES=blocks.row_stages,
            TOKEN_DEPTH=blocks.token_depth, TOKEN_WIDTH=blocks.token_width(max(K, V), keys.element_size()),
            TOKEN_STAGES=blocks.token_stages,
            GATED=log_g is not None, NORMALIZE=normalize, OFFSET=offset is not None, OVERLAP=overlap,
            num_warps=blocks.warps,
        )  # fmt: skip
        settle_kernel[(max(outputs, B * states * parts),)](
            partial, o, S, z, keys, values, gates, folded, position, begun,
            splits, outputs, L, fold, keep, parts, B * states * parts, heads.key, heads.value, states,
            K=K, V=V, P=p, D=D, FINISH=min(FINISH_BLOCK, triton.next_power_of_2(splits)),
            ROWS=FOLD_ROWS, BLOCK=FOLD_TOKENS,
            NORMALIZE=normalize, OFFSET=offset is not None, PRECISION="ieee" if INTERPRETED else "bf16x6",
            OVERLAP=overlap, num_warps=4, **options,
        )  # fmt: skip
    return o


def supports_triton_fold(fold: Fold) -> bool:
    """Whether the kernel takes these inputs."""
    return (
        (fold.S.is_cuda or INTERPRETED)
        and fold.S.dtype == fold.z.dtype == torch.float32
        and fold.keys.dtype in DTYPES
        and fold.keys.shape[-1] in WIDTHS
        and fold.values.shape[-1] in WIDTHS
        and fold.p in POWERS
    )


def triton_fold(fold: Fold) -> tuple[Tensor, Tensor]:
    """See `zoo.kernels.power.journal_sequence.journal_fold`."""
    p = fold.p
    S, z, keys, values, gates, folded, until = (x.contiguous() for x in fold[:-1])
    B, states, D, V = S.shape
    S_out, z_out, K = torch.empty_like(S), torch.empty_like(z), keys.shape[-1]
    if B == 0:
        return S_out, z_out
    parts = _folding_parts(S)
    with device_of(S):
        fold_kernel[(B * states * parts,)](
            S, z, S_out, z_out, keys, values, gates, folded, until,
            keys.shape[1], parts, keys.shape[2], values.shape[2], states,
            K=K, V=V, P=p, D=D, ROWS=FOLD_ROWS, BLOCK=FOLD_TOKENS, OFFSET=state_size(K, p) != D,
            PRECISION="ieee" if INTERPRETED else "bf16x6", num_warps=4,
        )  # fmt: skip
    return S_out, z_out


def _folding_parts(S: Tensor) -> int:
    """Programs that share the rows of each state in `S [B, Hs, D, V]`."""
    B, states, D, _ = S.shape
    return max(1, min(triton.cdiv(D, FOLD_ROWS), FOLDING_PROGRAMS // (B * states)))


@lru_cache(maxsize=16)
def _overlaps(device: torch.device) -> bool:
    """Whether a kernel's programs may be there before those of the one before it have ended: NVIDIA, from Hopper on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
