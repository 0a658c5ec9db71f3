# mypy: ignore-errors
"""Outputs, or gradients of the values: what the state gives and what the chunk gives, in one program."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from zoo.kernels.power.triton.hopper.half import Half, as_operand, begin, decay_halves, end, pair_factors, product
from zoo.kernels.power.triton.hopper.outputs import add_outputs
from zoo.kernels.power.triton.hopper.products import copy_scalars, load_symmetric, locate, times_normaliser
from zoo.kernels.power.triton.hopper.ring import open_ring, replaceable
from zoo.kernels.power.triton.hopper.rows import SIZE, open_rows, result_layout
from zoo.kernels.power.triton.hopper.side import Side, nearest_gates
from zoo.kernels.power.triton.output import VANISHING

__all__ = ["attend_kernel"]


@gluon.jit
def _add(half, score, values, factor, NORMALIZE: gl.constexpr):
    """Steps 5 and 6, for one half; returns the scores' registers as well."""
    # One product stays in flight: half 1's scores, or half 0's values.
    score = warpgroup_mma_wait(1, deps=[score])
    weight = score * score * factor  # float32, [HALF, 64]
    result = warpgroup_mma(as_operand(weight), values, half.result, is_async=True)
    row_sums = half.row_sums
    # The product takes a rounded copy, so the sum may run beside it.
    if NORMALIZE:
        row_sums += gl.sum(weight, 1)
    return half.with_sums(result, row_sums), score


@gluon.jit
def _meet(half0, half1, accumulators, ring, step, OWN: gl.constexpr, NORMALIZE: gl.constexpr):
    """Add what one block of tokens gives; OWN are the program's tokens."""
    side = ring.side
    # 3. Factors: the weights of the tokens there, and their decay.
    partner, first = ring.place(step)
    there = first + gl.arange(0, SIZE, gl.SliceLayout(0, accumulators[0].type.layout))
    factor = side.weight(side.position(partner, there, OWN), there, OWN)
    factor0, factor1 = pair_factors(half0, half1, side, there, factor, OWN)
    tile, values = ring.next(step)
    # 4. Scores x . x'.
    score0 = product(half0.x, tile.permute((1, 0)), accumulators[0])
    score1 = product(half1.x, tile.permute((1, 0)), accumulators[1])
    # 5. Weights (x . x')^2 times factors, 6. times values; and the sums of weights.
    half0, accumulator0 = _add(half0, score0, values, factor0, NORMALIZE)
    half1, accumulator1 = _add(half1, score1, values, factor1, NORMALIZE)
    return half0, half1, (accumulator0, accumulator1)


@gluon.jit
def _store(half, y, exact, denominator, HEADS, NORMALIZE: gl.constexpr, EXACT: gl.constexpr):
    """Store a half's outputs, over the sum of weights if NORMALIZE."""
    result, total = half.result, half.row_sums
    if NORMALIZE:
        gl.store(denominator + half.here * HEADS, total, half.here < y.tokens)
        # A denominator that small has lost its digits, and counts as zero: so do the outputs.
        vanishes = gl.abs(total) < VANISHING
        result = gl.where(vanishes[:, None], 0.0, result / gl.where(vanishes, 1.0, total)[:, None])
    y.store(half.here, result)
    if EXACT:
        exact.store(half.here, result)


@gluon.jit(do_not_specialize=["T", "BLOCKS", "HEADS"])
def attend_kernel(
    x, x_columns, other, values, states, gates, weights, y, exact, denominator, bounds, T, C, rows, scale,
    HEADS, SHARED, PARTNERS, X_SHARED, OTHER_SHARED, VALUE_SHARED, BLOCKS,
    K: gl.constexpr, V: gl.constexpr, HAS_STATES: gl.constexpr, FIRST: gl.constexpr, NORMALIZE: gl.constexpr,
    EXACT: gl.constexpr, GATED: gl.constexpr, REVERSE: gl.constexpr, PACKED: gl.constexpr, TRIPS: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """Outputs y `[B T, HEADS, V]` of queries x, the same in float32 if EXACT, and their denominators `[B T, HEADS]` if
    NORMALIZE.

    x is `[B T, Hx, K]`, x_columns `[slots, Hx, K, C]`, other (the keys) `[B T, Hk, K]`, values
    `[B T, Hv, V]`, states `[slots, Hs, rows (V + 1)]`, summed gates `[slots, Hs, C]`.

    REVERSE: the values' gradients y of keys x; other are the queries, values the gradients of the outputs, states those
    of the states after the chunks, and weights `[slots, Ho, C]` factors of the queries, zero beyond the chunk's end.

    A program takes 32 tokens a warp of one head. SHARED of HEADS share a state, and PARTNERS of the other side meet it;
    X_SHARED share an x, OTHER_SHARED and VALUE_SHARED partners the others.
    """
    gl.static_assert(K == SIZE and V == SIZE)  # a result is one tile wide, and so is each tile of a block
    HALF: gl.constexpr = 16 * WARPS
    BLOCK: gl.constexpr = 2 * HALF
    STAGES: gl.constexpr = 2
    sums: gl.constexpr = result_layout(WARPS)
    row_layout: gl.constexpr = gl.SliceLayout(1, sums)
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)

    part, _, head, slot, start, tokens, place = locate(BLOCKS, 1, HEADS, T, C, bounds, PACKED)
    token = part * BLOCK
    if token >= tokens:
        return
    # Heads: some of each kind may be shared; constants where the kernel was compiled for 1.
    STATES = HEADS // SHARED
    state = head // SHARED
    partners = STATES * PARTNERS
    vectors = open_rows(x, start, tokens, HEADS, X_SHARED, K).of(head)
    outputs = open_rows(y, start, tokens, HEADS, 1, V).of(head)
    exact_outputs = open_rows(exact, start, tokens, HEADS, 1, V).of(head)
    denominator += start * HEADS + head
    x_columns += (slot * vectors.heads + head // X_SHARED) * K * C + token
    states += (slot * STATES + state) * rows * (V + 1)
    gates += (slot * STATES + state) * C
    weights += (slot * HEADS + head) * PARTNERS * C

    tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TRIPS * K, SIZE], swizzled)
    x_tile = gl.allocate_shared_memory(gl.bfloat16, [2, HALF, K], swizzled)
    # These copies belong to the first group that is committed below, whichever that is.
    vectors.copy(x_tile.index(0), token)
    vectors.copy(x_tile.index(1), token + HALF)
    here0 = token + gl.arange(0, HALF, row_layout)
    here1 = here0 + HALF
    zeros, no_sums = gl.zeros((HALF, SIZE), gl.float32, sums), gl.zeros((HALF,), gl.float32, row_layout)
    results, accumulators, totals = (zeros, zeros), (zeros, zeros), (no_sums, no_sums)
    side = Side(
        token, tokens, C, gates, nearest_gates(gates, token, tokens, BLOCK, REVERSE, GATED), weights,
        state * PARTNERS, PARTNERS=PARTNERS, BLOCK=BLOCK, KEYS=REVERSE, GATED=GATED,
    )  # fmt: skip
    if HAS_STATES:
        scalars = gl.allocate_shared_memory(gl.bfloat16, [2 * K, HALF], gl.SwizzledSharedLayout(1, 1, 1, [0]))
        if NORMALIZE:
            # 1. The normaliser x^T z x, as one product.
            z = load_symmetric(states + rows * V, K)
            accumulator0 = times_normaliser(x_tile.index(0), z, accumulators[0])
            total0 = gl.sum(accumulator0 * vectors.load(here0, 0, K, sums).to(gl.float32), 1)
            accumulator1 = times_normaliser(x_tile.index(1), z, accumulators[1])
            total1 = gl.sum(accumulator1 * vectors.load(here1, 0, K, sums).to(gl.float32), 1)
            accumulators, totals = (accumulator0, accumulator1), (total0, total1)
        if FIRST or place > 0:
            # 2. The state's part S m(x).
            copy_scalars(scalars, x_columns, C)
            results, accumulators = add_outputs(
                results, accumulators, vectors, (here0, here1), states, tiles, scalars, V
            )
            replaceable()  # the chunk's blocks pass through the same memory
    half0 = Half(here0, x_tile.index(0), None, None, None, results[0], totals[0])
    half1 = Half(here1, x_tile.index(1), None, None, None, results[1], totals[1])
    # Both parts came from the state as it is; its decay to the nearest token is one number.
    if HAS_STATES and GATED:
        decay = side.to_state()
        half0, half1 = half0.times(decay), half1.times(decay)

    others = open_rows(other, start, tokens, partners, OTHER_SHARED, K)
    ring = open_ring(tiles, side, others, open_rows(values, start, tokens, partners, VALUE_SHARED, V))
    # Full blocks: decay through the nearest token, so that pairs need no exponential.
    half0, half1 = begin(half0, half1)
    for step in range(ring.full):
        half0, half1, accumulators = _meet(half0, half1, accumulators, ring, step, False, NORMALIZE)
    half0, half1 = end(half0, half1)
    if GATED:
        half0, half1, _, _ = decay_halves(half0, half1, side)
    # The program's own tokens: pairs have decays of their own, or are not causal.
    half0, half1 = begin(half0, half1)
    for step in range(ring.full, ring.steps):
        half0, half1, accumulators = _meet(half0, half1, accumulators, ring, step, True, NORMALIZE)
    half0, half1 = end(half0, half1)
    _store(half0.times(scale), outputs, exact_outputs, denominator, HEADS, NORMALIZE, EXACT)
    _store(half1.times(scale), outputs, exact_outputs, denominator, HEADS, NORMALIZE, EXACT)
