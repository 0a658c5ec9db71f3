"""Gradients of queries and keys that several heads share, at p = 1: heads are added up before they meet tokens.

Scores are the same for all heads. What differs, values and gates, is in the scores' gradients: these are added up, once
for queries and keys, and one product takes them to the tokens. So a pair of tokens costs a head one product, of its
values, where it costs six in kernels that have gradients for each head, and those need not be written, read and added
up.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.decay import decay, small_power
from zoo.kernels.power.triton.operands import as_operand
from zoo.kernels.power.triton.program import locate

__all__ = ["shared_gradient_kernel", "shared_scores_kernel"]


@triton.jit
def _rows(x, at, heads, head, V: tl.constexpr):
    """Values `[BLOCK, V]` of the tokens `at`, from `[T, heads, V]`."""
    return tl.load(x + (at * heads + head)[:, None] * V + tl.arange(0, V)[None, :])


@triton.jit(do_not_specialize=["T", "BLOCKS", "SLOTS", "Q_HEADS", "V_HEADS", "OUTPUTS", "SHARED"])
def shared_scores_kernel(
    q, k, v, do, factors, gates, gates_low, dscores, pairs, bounds,
    T, C, Q_HEADS, V_HEADS, OUTPUTS, SHARED, BLOCKS, SLOTS,
    K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, EXACT_GATES: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dscores `[slots, Hq, C, C]`, of all heads of a query; zero for later keys, and not written for later blocks.

    If GATED, pairs `[2, BLOCKS, slots, Ho, C]`, each head's sums of scores times their gradients: a query's with a
    block of keys, a key's with a block of queries. Both are sums of the same numbers, so that what cancels in the
    gates' gradient does. A program takes a block of queries `[B T, Hq, K]` and one of keys, and all their heads.
    """
    part, part_there, group, slot, start, tokens, _ = locate(BLOCKS, BLOCKS, Q_HEADS, T, C, bounds, PACKED)
    token = part * BLOCK
    if (token >= tokens) | (part_there > part):
        return
    here, there = token + tl.arange(0, BLOCK), part_there * BLOCK + tl.arange(0, BLOCK)
    row, row_there = tl.minimum(here, tokens - 1), tl.minimum(there, tokens - 1)
    channel = tl.arange(0, K)
    do += start * OUTPUTS * V
    v += start * V_HEADS * V
    of_head = (slot * OUTPUTS + group * SHARED) * C
    factors += of_head
    gates += of_head
    gates_low += of_head
    of_queries = pairs + part_there * SLOTS * OUTPUTS * C + of_head
    of_keys = pairs + (BLOCKS + part) * SLOTS * OUTPUTS * C + of_head
    dtype = do.dtype.element_ty

    queries = tl.load(q + (start * Q_HEADS + group) * K + row[:, None] * Q_HEADS * K + channel[None, :]).to(dtype)
    keys = tl.load(k + (start * Q_HEADS + group) * K + row_there[:, None] * Q_HEADS * K + channel[None, :]).to(dtype)
    counts = (here[:, None] >= there[None, :]) & (here < tokens)[:, None]
    # Also where all do: Triton 3.7.1 fails for Blackwell if an inner loop takes a product as it is.
    scores = tl.where(counts, tl.dot(queries, tl.trans(keys), input_precision=PRECISION), 0.0)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for own_tokens in tl.static_range(2):
        if (part == part_there) == (own_tokens == 1):
            for number in range(SHARED):
                head, log_g, low = group * SHARED + number, gates + number * C, gates_low + number * C
                mine = _rows(do, row, OUTPUTS, head, V)
                theirs = _rows(v, row_there, V_HEADS, head * V_HEADS // OUTPUTS, V).to(dtype)
                product = tl.dot(mine, tl.trans(theirs), input_precision=PRECISION)
                factor = tl.load(factors + number * C + row)
                if GATED and own_tokens == 1:
                    product *= decay(log_g, low, here[:, None], there[None, :], EXACT_GATES)
                elif GATED:  # a product of two, by way of the first query
                    factor *= decay(log_g, low, here, token, EXACT_GATES)
                    product *= decay(log_g, low, token, there, EXACT_GATES)[None, :]
                product *= factor[:, None]
                if GATED:
                    sums = product * scores
                    tl.store(of_queries + number * C + here, tl.sum(sums, 1))
                    tl.store(of_keys + number * C + there, tl.sum(sums, 0))
                total += product
    dscores += (slot * Q_HEADS + group) * C * C + here[:, None] * C + there[None, :]
    tl.store(dscores, as_operand(tl.where(counts, total, 0.0), dtype, PRECISION))


@triton.jit
def _add_to(sums, number, x):
    """sums `[BLOCK, ROOM]`, with x `[BLOCK]` added to those of one head."""
    return sums + tl.where(tl.arange(0, sums.shape[1])[None, :] == number, x[:, None], 0.0)


@triton.jit(do_not_specialize=["T", "BLOCKS", "SLOTS", "X_HEADS", "OWN_HEADS", "SHARED"])
def shared_gradient_kernel(
    x, others, own, factors, gates, gates_low, dscores, pairs, states, dx, along, bounds,
    T, C, rows, X_HEADS, OWN_HEADS, SHARED, BLOCKS, SLOTS,
    K: tl.constexpr, V: tl.constexpr, ROOM: tl.constexpr, BLOCK: tl.constexpr, OF_KEYS: tl.constexpr,
    GATED: tl.constexpr, EXACT_GATES: tl.constexpr, HAS_STATES: tl.constexpr, FIRST: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx `[B T, Hx, K]`, and if GATED along `[2, slots, Hx SHARED, C]`, each head's part of its product with x: of the
    chunk, of states.

    x is q, others k, own the outputs' gradients `[B T, Hx SHARED, V]`, and states those before the chunks; or, OF_KEYS,
    x is k, others q, own v `[B T, Hv, V]`, and states the gradients of those after the chunks. dscores and pairs are of
    `shared_scores_kernel`, with blocks as long. Sequences' first chunks have a state where FIRST. ROOM, a power of two,
    is SHARED at least; the rest as in `query_gradient_kernel`.
    """
    part, _, group, slot, start, tokens, place = locate(BLOCKS, 1, X_HEADS, T, C, bounds, PACKED)
    token = part * BLOCK
    if token >= tokens:
        return
    heads = X_HEADS * SHARED
    of_x = (start * X_HEADS + group) * K
    own += start * OWN_HEADS * V
    per_head = (slot * X_HEADS + group) * SHARED
    factors += per_head * C
    gates += per_head * C
    gates_low += per_head * C
    dscores += (slot * X_HEADS + group) * C * C
    dtype = dscores.dtype.element_ty

    number_here, channel = tl.arange(0, BLOCK), tl.arange(0, K)
    here = token + number_here
    existing, exists = tl.minimum(here, tokens - 1), (here < tokens)[:, None]
    last = tl.minimum(token + BLOCK, tokens) - 1
    result = tl.zeros((BLOCK, K), tl.float32)
    sums = tl.zeros((BLOCK, ROOM), tl.float32)
    if HAS_STATES:
        tile = tl.load(x + of_x + existing[:, None] * X_HEADS * K + channel[None, :]).to(tl.float32)
        states += per_head * rows * (V + 1)
        for number in range(SHARED * (1 if FIRST else tl.minimum(place, 1))):
            head, log_g, low = group * SHARED + number, gates + number * C, gates_low + number * C
            mine = _rows(own, existing, OWN_HEADS, head * OWN_HEADS // heads, V).to(dtype)
            state = _rows(states + number * rows * (V + 1), channel, 1, 0, V).to(dtype)
            product = tl.dot(mine, tl.trans(state), input_precision=PRECISION)
            left = here * 0 + 1.0 if OF_KEYS else tl.load(factors + number * C + existing)
            if GATED:
                if OF_KEYS:
                    left *= decay(log_g, low, C - 1, last, EXACT_GATES) * decay(log_g, low, last, here, EXACT_GATES)
                else:
                    from_start = tl.exp2(tl.load(log_g + token))
                    if EXACT_GATES:
                        from_start *= small_power(tl.load(low + token))
                    left *= from_start * decay(log_g, low, here, token, EXACT_GATES)
            product *= left[:, None]
            if GATED:
                sums = _add_to(sums, number, tl.sum(product * tile, 1))
            result += product

    first, end = (part, tl.cdiv(tokens, BLOCK)) if OF_KEYS else (0, part + 1)
    if GATED:
        number = tl.arange(0, ROOM)[None, :]
        exists_there = exists & (number < SHARED)
        along += per_head * C + number * C + here[:, None]
        tl.store(along + SLOTS * heads * C, tl.where(exists, sums, 0.0), number < SHARED)
        pairs += per_head * C + number * C + here[:, None]
        if OF_KEYS:
            pairs += BLOCKS * SLOTS * heads * C
        sums = tl.zeros((BLOCK, ROOM), tl.float32)
        for there in range(first, end):
            sums += tl.load(pairs + there * SLOTS * heads * C, exists_there, 0)
        tl.store(along, sums, number < SHARED)
    for there in range(first, end):
        rows_there = there * BLOCK + number_here
        other = tl.load(
            others + of_x + tl.minimum(rows_there, tokens - 1)[:, None] * X_HEADS * K + channel[None, :]
        ).to(dtype)
        if OF_KEYS:
            block = tl.trans(tl.load(dscores + rows_there[:, None] * C + here[None, :]))
        else:
            block = tl.load(dscores + here[:, None] * C + rows_there[None, :])
        result = tl.dot(block, other, result, input_precision=PRECISION)
    tl.store(dx + of_x + here[:, None] * X_HEADS * K + channel[None, :], result.to(dx.dtype.element_ty), exists)
