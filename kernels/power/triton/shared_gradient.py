"""Gradient of queries, or of keys, that several heads share, at p = 1: heads are added up before they meet tokens.

Scores are the same for all heads. What differs, values and gates, is in the scores' gradients: these are added up, and
one product takes them to the tokens. So a pair of tokens costs a head one product, of its values, where it costs three
in kernels that have a gradient for each head, and those gradients need not be written, read and added up.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.decay import decay, small_power
from zoo.kernels.power.triton.operands import as_operand
from zoo.kernels.power.triton.program import locate

__all__ = ["shared_gradient_kernel"]


@triton.jit
def _add_to(sums, number, x):
    """sums `[BLOCK, ROOM]`, with x `[BLOCK]` added to those of one head."""
    return sums + tl.where(tl.arange(0, sums.shape[1])[None, :] == number, x[:, None], 0.0)


@triton.jit
def _rows(x, at, heads, head, V: tl.constexpr):
    """Values `[BLOCK, V]` of the tokens `at`, from `[T, heads, V]`."""
    return tl.load(x + (at * heads + head)[:, None] * V + tl.arange(0, V)[None, :])


@triton.jit(do_not_specialize=["T", "BLOCKS", "SLOTS", "X_HEADS", "OWN_HEADS", "THERE_HEADS", "SHARED"])
def shared_gradient_kernel(
    x, others, own, values, factors, gates, gates_low, states, dx, along, bounds,
    T, C, rows, X_HEADS, OWN_HEADS, THERE_HEADS, SHARED, BLOCKS, SLOTS,
    K: tl.constexpr, V: tl.constexpr, ROOM: tl.constexpr, BLOCK: tl.constexpr, OTHERS: tl.constexpr,
    OF_KEYS: tl.constexpr, GATED: tl.constexpr, EXACT_GATES: tl.constexpr, HAS_STATES: tl.constexpr,
    FIRST: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx `[B T, Hx, K]`, and along `[2, slots, Hx SHARED, C]`, each head's part of its product with x: of the chunk, of
    states.

    x is q, others k, own the outputs' gradients `[B T, Hx SHARED, V]`, values v `[B T, Hv, V]`, and states those before
    the chunks; or, OF_KEYS, x is k, others q, own v, values the outputs' gradients, and states the gradients of those
    after the chunks. Sequences' first chunks have a state where FIRST. ROOM, a power of two, is SHARED at least; the
    rest as in `query_gradient_kernel`.
    """
    part, _, group, slot, start, tokens, place = locate(BLOCKS, 1, X_HEADS, T, C, bounds, PACKED)
    token = part * BLOCK
    if token >= tokens:
        return
    heads = X_HEADS * SHARED
    x += (start * X_HEADS + group) * K
    others += (start * X_HEADS + group) * K
    dx += (start * X_HEADS + group) * K
    own += start * OWN_HEADS * V
    values += start * THERE_HEADS * V
    per_head = (slot * X_HEADS + group) * SHARED
    factors += per_head * C
    gates += per_head * C
    gates_low += per_head * C
    along += per_head * C
    dtype: tl.constexpr = (values if OF_KEYS else own).dtype.element_ty  # the outputs' gradients are the products'

    here = token + tl.arange(0, BLOCK)
    existing = tl.minimum(here, tokens - 1)
    last = tl.minimum(token + BLOCK, tokens) - 1
    channel, number_there = tl.arange(0, K), tl.arange(0, OTHERS)
    tile = tl.load(x + existing[:, None] * X_HEADS * K + channel[None, :]).to(dtype)
    result = tl.zeros((BLOCK, K), tl.float32)
    number_here, exists = tl.arange(0, ROOM)[None, :], (here < tokens)[:, None]
    along += number_here * C + here[:, None]
    along_of_states = along + SLOTS * heads * C

    sums = tl.zeros((BLOCK, ROOM), tl.float32)
    if HAS_STATES:
        states += per_head * rows * (V + 1)
        for number in range(SHARED * (1 if FIRST else tl.minimum(place, 1))):
            head, log_g, low = group * SHARED + number, gates + number * C, gates_low + number * C
            mine = _rows(own, existing, OWN_HEADS, head * OWN_HEADS // heads, V).to(dtype)
            state = _rows(states + number * rows * (V + 1), channel, 1, 0, V).to(dtype)
            product = tl.dot(mine, tl.trans(state), input_precision=PRECISION)
            if not OF_KEYS:
                product *= tl.load(factors + number * C + existing)[:, None]
            if GATED:
                if OF_KEYS:
                    left = decay(log_g, low, C - 1, last, EXACT_GATES) * decay(log_g, low, last, here, EXACT_GATES)
                else:
                    from_start = tl.exp2(tl.load(log_g + token))
                    if EXACT_GATES:
                        from_start *= small_power(tl.load(low + token))
                    left = from_start * decay(log_g, low, here, token, EXACT_GATES)
                product *= left[:, None]
                sums = _add_to(sums, number, tl.sum(product * tile.to(tl.float32), 1))
            result += product
    if GATED:
        tl.store(along_of_states, tl.where(exists, sums, 0.0), number_here < SHARED)

    sums = tl.zeros((BLOCK, ROOM), tl.float32)
    for own_tokens in tl.static_range(2):
        # First those beyond all that are here: their decay is a product of two, by way of the token that is nearest.
        begin, end = token, tl.minimum(token + BLOCK, tokens)
        if own_tokens == 0:
            begin, end = (token + BLOCK, tokens) if OF_KEYS else (0, token)
        for first in range(begin, end, OTHERS):
            there = first + number_there
            rows_there = tl.minimum(there, tokens - 1)
            other = tl.load(others + rows_there[:, None] * X_HEADS * K + channel[None, :]).to(dtype)
            causal = here[:, None] <= there[None, :] if OF_KEYS else here[:, None] >= there[None, :]
            # Also where all are: Triton 3.7.1 fails for Blackwell if an inner loop takes a product as it is.
            scores = tl.where(causal, tl.dot(tile, tl.trans(other), input_precision=PRECISION), 0.0)
            dscores = tl.zeros((BLOCK, OTHERS), tl.float32)
            for number in range(SHARED):
                head, log_g, low = group * SHARED + number, gates + number * C, gates_low + number * C
                mine = _rows(own, existing, OWN_HEADS, head * OWN_HEADS // heads, V).to(dtype)
                theirs = _rows(values, rows_there, THERE_HEADS, head * THERE_HEADS // heads, V).to(dtype)
                product = tl.dot(mine, tl.trans(theirs), input_precision=PRECISION)
                if OF_KEYS:
                    product *= tl.load(factors + number * C + there)[None, :]
                else:
                    product *= tl.load(factors + number * C + existing)[:, None]
                if GATED and own_tokens == 1:
                    if OF_KEYS:
                        product *= decay(log_g, low, there[None, :], here[:, None], EXACT_GATES)
                    else:
                        product *= decay(log_g, low, here[:, None], there[None, :], EXACT_GATES)
                elif GATED:
                    if OF_KEYS:
                        product *= decay(log_g, low, there, last, EXACT_GATES)[None, :]
                        product *= decay(log_g, low, last, here, EXACT_GATES)[:, None]
                    else:
                        product *= decay(log_g, low, token, there, EXACT_GATES)[None, :]
                        product *= decay(log_g, low, here, token, EXACT_GATES)[:, None]
                if GATED:
                    sums = _add_to(sums, number, tl.sum(product * scores, 1))
                dscores += product
            dscores = as_operand(tl.where(causal, dscores, 0.0), dtype, PRECISION)
            result = tl.dot(dscores, other, result, input_precision=PRECISION)
    if GATED:
        tl.store(along, tl.where(exists, sums, 0.0), number_here < SHARED)
    tl.store(dx + here[:, None] * X_HEADS * K + channel[None, :], result.to(dx.dtype.element_ty), exists)
