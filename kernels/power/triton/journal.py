# mypy: disable-error-code="no-untyped-def, assignment"
"""One decoded token beside a journal on a GPU: what its queries read, and what then enters the sums.

Decoding is bandwidth: each number of a state is loaded once and none is stored, but every so many tokens. A program of
the first kernel takes a block of a state's rows, and a part of its journal; one of them takes the new token. The second
kernel adds up what they have read, always in the same order. Its other programs have the oldest tokens of a journal
that is full enter the sums, and otherwise end at once. Which it is, each program sees for its row: one CUDA graph does
for all.
"""

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
    StepBlocks,
    finish,
    monomials,
    own_weight,
    row_channels,
    step_blocks,
)
from zoo.kernels.triton_support import DTYPES, INTERPRETED

__all__ = [
    "fold_kernel", "read_kernel", "settle_kernel", "supports_triton_fold", "supports_triton_journal", "triton_fold",
    "triton_journal_step",
]  # fmt: skip

FORGETS = tl.constexpr(-(2.0**14))  # as `zoo.kernels.power.journal.FORGETS`
FOLD_ROWS = 32  # of a state's, in one product with FOLD_TOKENS that enter it
FOLD_TOKENS = 16
FOLDING_PROGRAMS = 396  # that run at a time: 3 on each of the 132 multiprocessors of an H100 or H200


@triton.jit
def _slot(start, index, L):
    """Where in the ring the token `index` stands, counted from the one at position `start`; index from -1 to L - 1."""
    slot = (start % L).to(tl.int32) + index
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
def read_kernel(
    q, k, v, log_g, S, z, keys, values, gates, folded, position, offset, partial, begun, scale,
    q_batch, q_head, k_batch, k_head, v_batch, v_head,
    L, Q_HEADS, K_HEADS, V_HEADS, STATES, ROWS, SPLITS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    GATED: tl.constexpr, NORMALIZE: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Read ROWS rows of `S [B, Hs, D, V]` and `z [B, Hs, D]`, and a share of the journal, with the GROUP query heads of
    a state; the first of a state's SPLITS programs appends the new token, and meets it.

    q `[B, Hq, K]`, k `[B, Hk, K]` and v `[B, Hv, V]` come with the strides of batch and heads; log_g is `[B, Hv]`,
    and offset `[Hq]`, float32, if OFFSET. The journal is `keys [B, L, Hk, K]`, `values [B, L, Hv, V]` and `gates
    [B, L, Hv]`. What has been read goes to `partial`, see `settle_kernel`, and where a row's journal began to `begun`.
    """
    program = tl.program_id(0)
    state, split = program // SPLITS, program % SPLITS
    batch, head = (state // STATES).to(tl.int64), state % STATES
    key_head, value_head = head * K_HEADS // STATES, head * V_HEADS // STATES
    S += state.to(tl.int64) * D * V
    z += state.to(tl.int64) * D
    keys += batch * L * K_HEADS * K + key_head * K
    values += batch * L * V_HEADS * V + value_head * V
    gates += batch * L * V_HEADS + value_head

    at = tl.load(position + batch)
    start = tl.load(folded + batch)
    count = tl.minimum(tl.maximum(at - start, 0), L - 1).to(tl.int32)  # in the journal, without this one; within memory
    total = tl.load(gates + _slot(start, count - 1, L) * V_HEADS)
    if GATED:
        total += tl.maximum(tl.load(log_g + batch * V_HEADS + value_head).to(tl.float64), FORGETS)

    queries, constants = (), ()
    for member in tl.static_range(GROUP):
        query_head = (head * GROUP + member) * Q_HEADS // (STATES * GROUP)
        queries += (q + batch * q_batch + query_head * q_head,)
        constants += (tl.load(offset + query_head) if OFFSET else 0.0,)

    # The sums. Over nothing, which they are at first, they are not read.
    first = split * ROWS
    last = tl.where(start > 0, tl.minimum(first + ROWS, D), first)
    CHANNELS: tl.constexpr = K + 1 if OFFSET else K
    value = tl.arange(0, V)
    numerators, denominators = (), ()
    for _ in tl.static_range(GROUP):
        numerators += (tl.zeros((WIDTH, V), tl.float32),)
        denominators += (tl.zeros((BLOCK,), tl.float32),)
    for trip in range(first, last, DEPTH * WIDTH):
        rows, read = (), ()
        for depth in tl.static_range(DEPTH):
            rows += (trip + depth * WIDTH + tl.arange(0, WIDTH)[:, None],)
            read += (tl.load(S + rows[depth] * V + value[None, :], rows[depth] < last, 0),)
        for depth in tl.static_range(DEPTH):
            channels, coefficient = row_channels(rows[depth], CHANNELS, P, D)
            coefficient = tl.where(rows[depth] < last, coefficient, 0.0)
            sums = ()
            for member in tl.static_range(GROUP):
                query = coefficient * monomials(queries[member], channels, scale, constants[member], K, P, OFFSET)
                sums += (numerators[member] + query * read[depth],)
            numerators = sums
    if NORMALIZE:
        for trip in range(first, last, BLOCK):
            row = trip + tl.arange(0, BLOCK)
            exists = row < last
            channels, coefficient = row_channels(row, CHANNELS, P, D)
            weighted = tl.where(exists, coefficient * tl.load(z + row, exists, 0), 0.0)
            sums = ()
            for member in tl.static_range(GROUP):
                query = monomials(queries[member], channels, scale, constants[member], K, P, OFFSET)
                sums += (denominators[member] + query * weighted,)
            denominators = sums
    kept = _kept(total, tl.load(gates + _slot(start, -1, L) * V_HEADS))

    # The journal, whose weights are as they are defined.
    channel, token = tl.arange(0, K), tl.arange(0, TILE)
    vectors, read_tokens, weights = (), (), ()
    for member in tl.static_range(GROUP):
        vectors += (tl.load(queries[member] + channel).to(tl.float32) * scale,)
        read_tokens += (tl.zeros((TILE, V), tl.float32),)
        weights += (tl.zeros((TILE,), tl.float32),)
    # A share of as many tokens as there are by now: early on they are all that is read.
    share = tl.cdiv(tl.cdiv(count, SPLITS), TILE) * TILE
    low = split * share
    high = tl.minimum(low + share, count)
    for tile in range(low, high, TILE):
        index = tile + token
        exists = index < high
        slot = _slot(start, index, L)
        key = tl.load(keys + slot[:, None] * K_HEADS * K + channel[None, :], exists[:, None], 0).to(tl.float32)
        held = tl.load(values + slot[:, None] * V_HEADS * V + value[None, :], exists[:, None], 0).to(tl.float32)
        decay = tl.where(exists, _decays(total, tl.load(gates + slot * V_HEADS, exists, 0)), 0.0)
        sums, totals = (), ()
        for member in tl.static_range(GROUP):
            score = tl.sum(key * vectors[member][None, :], 1) + constants[member]
            weight = tl.where(exists, power(score, P) * decay, 0.0)
            sums += (read_tokens[member] + weight[:, None] * held,)
            totals += (weights[member] + weight,)
        read_tokens, weights = sums, totals

    v_row = tl.load(v + batch * v_batch + value_head * v_head + value)
    k += batch * k_batch + key_head * k_head
    if split == 0:
        slot = _slot(start, count, L)
        tl.store(keys + slot * K_HEADS * K + channel, tl.load(k + channel).to(keys.dtype.element_ty))
        tl.store(values + slot * V_HEADS * V + value, v_row.to(values.dtype.element_ty))
        tl.store(gates + slot * V_HEADS, total)
        tl.store(begun + batch, start)
    for member in tl.static_range(GROUP):
        numerator = kept * tl.sum(numerators[member], 0) + tl.sum(read_tokens[member], 0)
        denominator = kept * tl.sum(denominators[member], 0) + tl.sum(weights[member], 0)
        if split == 0:
            weight = own_weight(queries[member], k, scale, constants[member], K, P)
            numerator += weight * v_row.to(tl.float32)
            denominator += weight
        at = (state.to(tl.int64) * GROUP + member) * SPLITS + split
        tl.store(partial + at * V + value, numerator)
        if NORMALIZE:
            tl.store(partial + tl.num_programs(0).to(tl.int64) * GROUP * V + at, denominator)


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
    end = tl.load(gates + _slot(start, fold - 1, L) * V_HEADS)
    kept = _kept(end, tl.load(gates + _slot(start, -1, L) * V_HEADS))
    channels, _ = row_channels(rows, CHANNELS, P, D)
    exists = rows < D
    old = tl.load(S + rows[:, None] * V + value[None, :], exists[:, None], 0)
    sums = tl.zeros(old.shape, tl.float32)
    normaliser = kept * tl.load(z + rows, exists, 0)
    for tile in range(0, fold, BLOCK):
        index = tile + token
        inside = index < fold
        slot = _slot(start, index, L)
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
    SPLITS, OUTPUTS, L, FOLD, KEEP, PARTS, K_HEADS, V_HEADS, STATES,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, D: tl.constexpr,
    FINISH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    NORMALIZE: tl.constexpr, OFFSET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o `[B Ho, V]`, OUTPUTS of them, from what `read_kernel` has left; and tokens that are due by now enter the sums
    (`zoo.kernels.power.journal.due`): each state's in PARTS programs, which take turns with ROWS rows each.
    """
    program = tl.program_id(0)
    if program < OUTPUTS:
        finish(partial, o, program, OUTPUTS, SPLITS, V, FINISH, NORMALIZE)
    else:
        program -= OUTPUTS
        state, part = program // PARTS, program % PARTS
        batch = (state // STATES).to(tl.int64)
        start = tl.load(begun + batch)  # not `folded`, which another program may have changed
        after = tl.load(position + batch) + 1
        until = tl.where(after < L - 1, 0, (after - KEEP) // FOLD * FOLD)
        until = tl.minimum(until, start + L - 1)  # of memory, whatever `folded` says
        if until > start:
            fold = (until - start).to(tl.int32)
            _share_of_rows(
                S, z, S, z, keys, values, gates, start, fold, state, part, L, PARTS, K_HEADS, V_HEADS, STATES,
                K, V, P, D, ROWS, BLOCK, OFFSET, PRECISION,
            )  # fmt: skip
            if part == 0 and state % STATES == 0:
                tl.store(folded + batch, until)


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


def triton_journal_step(step: JournalStep, blocks: StepBlocks | None = None) -> Tensor:
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
    group = heads.queries_per_state
    blocks = step_blocks(B * states, D, V) if blocks is None else blocks
    splits = blocks.splits
    tile = token_tile(step, blocks)
    outputs = B * heads.output
    partial = S.new_empty(outputs * splits * (V + 1))
    begun = torch.empty_like(folded)
    parts = _folding_parts(S)
    with device_of(S):
        read_kernel[(B * states * splits,)](
            q, k, v, S if log_g is None else log_g, S, z, keys, values, gates, folded, position,
            S if offset is None else offset, partial, begun, scale,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            L, heads.query, heads.key, heads.value, states, blocks.rows, splits,
            K=K, V=V, P=p, D=D, GROUP=group,
            BLOCK=4 * LANES * blocks.warps, DEPTH=blocks.depth, WIDTH=blocks.width(V), TILE=tile,
            GATED=log_g is not None, NORMALIZE=normalize, OFFSET=offset is not None,
            num_warps=blocks.warps,
        )  # fmt: skip
        settle_kernel[(outputs + B * states * parts,)](
            partial, o, S, z, keys, values, gates, folded, position, begun,
            splits, outputs, L, fold, keep, parts, heads.key, heads.value, states,
            K=K, V=V, P=p, D=D, FINISH=FINISH_BLOCK, ROWS=FOLD_ROWS, BLOCK=FOLD_TOKENS,
            NORMALIZE=normalize, OFFSET=offset is not None, PRECISION="ieee" if INTERPRETED else "bf16x6",
            num_warps=4,
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


def token_tile(step: JournalStep, blocks: StepBlocks) -> int:
    """Tokens that a program reads at a time: as many as give a thread 16 bytes, or twice that.

    No more than there may be for it, nor than its registers hold, in which is what each of a group's queries has read;
    and not so many that one program would have to read all that is beside the sums.
    """
    widest, size = max(step.k.shape[-1], step.v.shape[-1]), step.keys.element_size()
    least = max(1, blocks.warps * LANES * 16 // (size * widest))
    times = min(2 // step.heads.queries_per_state, step.keys.shape[1] // (least * blocks.splits))
    return least * max(1, times)
