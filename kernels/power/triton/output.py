"""The output: what the chunk itself and the state before it give to each query, and the normaliser."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.decay import decay, small_power
from zoo.kernels.power.triton.from_state import add_lower_outputs, add_outputs, normalisers
from zoo.kernels.power.triton.monomials import power
from zoo.kernels.power.triton.operands import as_operand, divide
from zoo.kernels.power.triton.program import load_keys, locate, start_of_keys

__all__ = ["STEEP", "VANISHING", "output_kernel"]

# As `reference.vanishes` and `reference.steep`: a smaller denominator gives no output, and no gradient.
VANISHING = tl.constexpr(2.0**-126)
STEEP = tl.constexpr(2.0**-110)


@triton.jit(do_not_specialize=["T", "BLOCKS", "Q_HEADS", "K_HEADS", "V_HEADS", "STATES", "OUTPUTS"])
def output_kernel(
    q, q_columns, keys, v, gates, gates_low, states, given, given_total, o, exact, denominator, offset, bounds,
    T, C, rows, scale,
    Q_HEADS, K_HEADS, V_HEADS, STATES, OUTPUTS, BLOCKS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, BLOCK: tl.constexpr,
    KEYS: tl.constexpr, NORMALIZE: tl.constexpr, EXACT: tl.constexpr, GATED: tl.constexpr,
    EXACT_GATES: tl.constexpr, HAS_STATES: tl.constexpr, GIVEN: tl.constexpr, HAS_INITIAL: tl.constexpr,
    OFFSET: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o `[B T, Ho, V]`, the same in float32 if EXACT, and denominator `[B T, Ho]`.

    q `[B T, Hq, K]`, q_columns `[slots, Hq, K, C]`, keys as in `start_of_keys`, v `[B T, Hv, V]`, summed gates
    `[slots, Hs, C]` (high and low parts), states `[slots, Hs, rows (V + 1)]`; what they give to the queries may be
    GIVEN `[B T, Ho, V]`, and at P > 2 is, with what they give to the normaliser, given_total `[B T, Ho]`. If OFFSET,
    offset `[Hq]` is added to scores. A program takes BLOCK queries of one output head, KEYS keys at a time.
    """
    scale = tl.cast(scale, tl.float32)  # the compiler passes a Python number in float64
    part, _, head, slot, start, tokens, place = locate(BLOCKS, 1, OUTPUTS, T, C, bounds, PACKED)
    token = part * BLOCK
    if token >= tokens:
        return
    state = head // (OUTPUTS // STATES)
    q += start * Q_HEADS * K + head * Q_HEADS // OUTPUTS * K
    q_columns += (slot * Q_HEADS + head * Q_HEADS // OUTPUTS) * K * C
    keys = start_of_keys(keys, start, slot, state * K_HEADS // STATES, K_HEADS, C, K, P)
    v += start * V_HEADS * V + state * V_HEADS // STATES * V
    o += (start * OUTPUTS + head) * V
    exact += (start * OUTPUTS + head) * V
    denominator += start * OUTPUTS + head
    gates += (slot * STATES + state) * C
    gates_low += (slot * STATES + state) * C
    dtype: tl.constexpr = tl.bfloat16 if q.dtype.element_ty == tl.bfloat16 else tl.float32

    here = token + tl.arange(0, BLOCK)
    at = tl.minimum(here, tokens - 1) * Q_HEADS * K
    channels_of_key, values, number = tl.arange(0, K), tl.arange(0, V), tl.arange(0, KEYS)
    if OFFSET:
        beta = tl.load(offset + head * Q_HEADS // OUTPUTS)
    y = tl.zeros((BLOCK, V), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    if HAS_STATES:
        count = 1 if HAS_INITIAL else tl.minimum(place, 1)
        states += (slot * STATES + state) * rows * (V + 1)
        vectors = (q, at, q_columns, here, C)
        before = (states, states + rows * V, count)
        exist = (here < tokens) & (count > 0)
        if NORMALIZE:
            if P > 2:
                total = tl.load(given_total + (start * OUTPUTS + head) + here * OUTPUTS, exist, 0)
            else:
                total = normalisers(vectors, before, K, P, INNER, dtype, PRECISION)
        if OFFSET:  # first, while there is room in registers
            tl.static_assert(not GIVEN)
            tile = tl.load(q + at[:, None] + channels_of_key[None, :]).to(dtype)
            linear, constant = P * beta * count, power(beta, P) * count
            y, total = add_lower_outputs(y, total, tile, linear, constant, states, rows, P, NORMALIZE, PRECISION)
        if GIVEN:
            given += (start * OUTPUTS + head) * V
            y = tl.load(given + here[:, None] * OUTPUTS * V + tl.arange(0, V)[None, :], exist[:, None], 0)
        else:
            y = add_outputs(y, vectors, before, K, P, dtype, PRECISION)
        if GATED:
            from_start = tl.exp2(tl.load(gates + token))
            if EXACT_GATES:
                from_start *= small_power(tl.load(gates_low + token))
            y *= from_start
            total *= from_start

    queries = tl.load(q + at[:, None] + channels_of_key[None, :]).to(dtype)
    for first in range(0, token, KEYS):
        there = first + number
        columns = load_keys(keys, there, tokens, K_HEADS, C, K, P, dtype)
        block = tl.load(v + there[:, None] * V_HEADS * V + values[None, :]).to(dtype)
        scores = tl.dot(queries, columns, input_precision=PRECISION)
        if OFFSET:
            scores += beta
        scores = power(scores, P)
        if GATED:
            scores *= decay(gates, gates_low, token, there, EXACT_GATES)[None, :]
        if NORMALIZE:
            total += tl.sum(scores, 1)
        y = tl.dot(as_operand(scores, dtype, PRECISION), block, y, input_precision=PRECISION)
    if GATED:
        from_token = decay(gates, gates_low, here, token, EXACT_GATES)
        y *= from_token[:, None]
        total *= from_token
    for first in range(token, tl.minimum(token + BLOCK, tokens), KEYS):
        there = first + number
        columns = load_keys(keys, there, tokens, K_HEADS, C, K, P, dtype)
        block = tl.load(v + tl.minimum(there, tokens - 1)[:, None] * V_HEADS * V + values[None, :]).to(dtype)
        scores = tl.dot(queries, columns, input_precision=PRECISION)
        if OFFSET:
            scores += beta
        scores = power(scores, P)
        if GATED:
            scores *= decay(gates, gates_low, here[:, None], there[None, :], EXACT_GATES)
        scores = tl.where(here[:, None] >= there[None, :], scores, 0.0)
        if NORMALIZE:
            total += tl.sum(scores, 1)
        y = tl.dot(as_operand(scores, dtype, PRECISION), block, y, input_precision=PRECISION)

    y *= scale
    exists = here < tokens
    if NORMALIZE:
        total *= scale
        tl.store(denominator + here * OUTPUTS, total, exists)
        vanishes = tl.abs(total) < VANISHING
        y = tl.where(vanishes[:, None], 0.0, divide(y, tl.where(vanishes, 1.0, total)[:, None], PRECISION))
    places = here[:, None] * OUTPUTS * V + values[None, :]
    tl.store(o + places, y.to(o.dtype.element_ty), exists[:, None])
    if EXACT:
        tl.store(exact + places, y, exists[:, None])
