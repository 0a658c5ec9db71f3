# mypy: ignore-errors
"""Gradients of the queries, or of the keys: what the states give and what the chunk gives, in one program."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from zoo.kernels.power.triton.hopper.gradients import add_gradients
from zoo.kernels.power.triton.hopper.half import Half, as_operand, begin, decay_halves, end, pair_factors, product
from zoo.kernels.power.triton.hopper.products import copy_scalars, load_symmetric, locate, times_normaliser
from zoo.kernels.power.triton.hopper.ring import open_ring, replaceable
from zoo.kernels.power.triton.hopper.rows import SIZE, open_rows, operand_layout, result_layout
from zoo.kernels.power.triton.hopper.side import Side, nearest_gates

__all__ = ["differentiate_kernel"]


@gluon.jit
def _add(half, accumulators, tile, values, delta, factor, GATED: gl.constexpr):
    """Steps 4 to 7, for one half; returns the accumulators as well."""
    # 4. Scores x . x', and products with the values own . y'.
    score = product(half.x, tile.permute((1, 0)), accumulators[0])
    gradient = product(half.own, values.permute((1, 0)), accumulators[1])
    # Nothing stays in flight: a half takes both accumulators, one for scores and one for gradients.
    score, gradient = warpgroup_mma_wait(0, deps=[score, gradient])
    # 5. Half of the scores' gradients, (own . y' - delta) times factors and scores.
    score_gradient = (gradient - delta) * (score * factor)
    row_sums = half.row_sums
    if GATED:
        # 6. Their products with the scores, before they are rounded, add up to x . dx / 2.
        row_sums += gl.sum(score_gradient * score, 1)
        # The next products start in the registers that this sum reads. The wait, with the sum among its dependencies,
        # keeps it before them: behind them it was wrong for one half of the tokens.
        score, gradient, row_sums = warpgroup_mma_wait(0, deps=[score, gradient, row_sums])
    # 7. dx / 2 += scores' gradients times x'.
    result = warpgroup_mma(as_operand(score_gradient), tile, half.result, is_async=True)
    return half.with_sums(result, row_sums), (score, gradient)


@gluon.jit
def _meet(half0, half1, accumulators, ring, step, delta, OWN: gl.constexpr, NORMALIZE: gl.constexpr):
    """Add what one block of tokens gives; OWN are the program's tokens."""
    side = ring.side
    # 3. Factors: the weights of the tokens there, and their decay. delta belongs to the queries, here or there.
    partner, first = ring.place(step)
    there = first + gl.arange(0, SIZE, gl.SliceLayout(0, accumulators[0].type.layout))
    at = side.position(partner, there, OWN)
    factor = side.weight(at, there, OWN)
    if NORMALIZE and side.KEYS:
        delta0 = gl.load(delta + at)[None, :]
        delta1 = delta0
    else:
        delta0, delta1 = half0.delta[:, None], half1.delta[:, None]
    factor0, factor1 = pair_factors(half0, half1, side, there, factor, OWN)
    tile, values = ring.next(step)
    half0, accumulators = _add(half0, accumulators, tile, values, delta0, factor0, side.GATED)
    half1, accumulators = _add(half1, accumulators, tile, values, delta1, factor1, side.GATED)
    return half0, half1, accumulators


@gluon.jit
def _store(half, from_states, factor, dx, q_dot_dq, q_dot_dq_of_states, GATED: gl.constexpr):
    """Store a half's gradients, and the two parts of their products with x."""
    # 8. Weights are homogeneous of degree 2 in x.
    dx.store(half.here, half.result * (2 * factor[:, None]))
    if GATED:
        exists = half.here < dx.tokens
        gl.store(q_dot_dq + half.here, gl.where(exists, half.row_sums * factor, 0.0))
        gl.store(q_dot_dq_of_states + half.here, gl.where(exists, from_states * factor, 0.0))


@gluon.jit(do_not_specialize=["T", "BLOCKS", "SLOTS", "HEADS"])
def differentiate_kernel(
    x, x_columns, own, other, values, states, gates, weights, delta, dx, along, bounds, T, C, rows,
    HEADS, SHARED, PARTNERS, X_SHARED, OWN_SHARED, OTHER_SHARED, VALUE_SHARED, BLOCKS, SLOTS,
    K: gl.constexpr, V: gl.constexpr, HAS_STATES: gl.constexpr, FIRST: gl.constexpr, NORMALIZE: gl.constexpr,
    HAS_NORMALISER: gl.constexpr, GATED: gl.constexpr, REVERSE: gl.constexpr, PACKED: gl.constexpr,
    TRIPS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Gradients dx `[B T, HEADS, K]` of queries x, and along `[2, slots, HEADS, C]`, their product with x over 2: the
    chunk's part, and the states'.

    own are the outputs' gradients `[B T, Ho, V]`; weights and, if NORMALIZE, delta `[slots, Ho, C]` factors of
    them, and what is taken from their product with each value. The rest as in `attend_kernel`.

    REVERSE: of keys x. own are the values, values the outputs' gradients.
    """
    gl.static_assert(K == SIZE and V == SIZE)  # a result is one tile wide, and so is each tile of a block
    HALF: gl.constexpr = 16 * WARPS
    BLOCK: gl.constexpr = 2 * HALF
    STAGES: gl.constexpr = 2
    sums: gl.constexpr = result_layout(WARPS)
    operand: gl.constexpr = operand_layout(sums)
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
    own_vectors = open_rows(own, start, tokens, HEADS, OWN_SHARED, V).of(head)
    gradients = open_rows(dx, start, tokens, HEADS, 1, K).of(head)
    x_columns += (slot * vectors.heads + head // X_SHARED) * K * C + token
    states += (slot * STATES + state) * rows * (V + 1)
    gates += (slot * STATES + state) * C
    weights += (slot * HEADS + head) * PARTNERS * C
    delta += (slot * HEADS + head) * PARTNERS * C
    q_dot_dq = along + (slot * HEADS + head) * C
    q_dot_dq_of_states = along + ((slot + SLOTS) * HEADS + head) * C

    tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TRIPS * SIZE, V], swizzled)
    x_tile = gl.allocate_shared_memory(gl.bfloat16, [2, HALF, K], swizzled)
    # These copies belong to the first group that is committed below, whichever that is.
    vectors.copy(x_tile.index(0), token)
    vectors.copy(x_tile.index(1), token + HALF)
    here0 = token + gl.arange(0, HALF, row_layout)
    here1 = here0 + HALF
    # Left operands of the state's products and of the chunk's, in registers all along.
    own0, own1 = own_vectors.load(here0, 0, V, operand), own_vectors.load(here1, 0, V, operand)
    zeros, no_sums = gl.zeros((HALF, SIZE), gl.float32, sums), gl.zeros((HALF,), gl.float32, row_layout)
    results, accumulators = (zeros, zeros), (zeros, zeros)
    delta0, delta1 = no_sums, no_sums
    if NORMALIZE and not REVERSE:
        delta0, delta1 = gl.load(delta + here0), gl.load(delta + here1)
    from_states0, from_states1 = no_sums, no_sums
    side = Side(
        token, tokens, C, gates, nearest_gates(gates, token, tokens, BLOCK, REVERSE, GATED), weights,
        state * PARTNERS, PARTNERS=PARTNERS, BLOCK=BLOCK, KEYS=REVERSE, GATED=GATED,
    )  # fmt: skip
    if HAS_STATES:
        if HAS_NORMALISER:
            # 1. The normaliser's part, z x times the gradient of the denominator.
            z = load_symmetric(states + rows * V, K)
            accumulator0 = times_normaliser(x_tile.index(0), z, accumulators[0])
            accumulator1 = times_normaliser(x_tile.index(1), z, accumulators[1])
            accumulators = accumulator0, accumulator1
            results = accumulators
            if not REVERSE:
                results = accumulator0 * -delta0[:, None], accumulator1 * -delta1[:, None]
        if FIRST or place > 0:
            # 2. The state's part sum_i x_i (S_i own).
            scalars = gl.allocate_shared_memory(gl.bfloat16, [2 * K, HALF], gl.SwizzledSharedLayout(1, 1, 1, [0]))
            copy_scalars(scalars, x_columns, C)
            results, accumulators = add_gradients(results, accumulators, (own0, own1), states, tiles, scalars, 0, K)
            replaceable()  # the chunk's blocks pass through the same memory
        if GATED:
            # What states give to q . dq stays apart: it is rounded, and must not have to cancel (gate_gradient.py).
            decay = side.to_state()
            results = results[0] * decay, results[1] * decay
            from_states0 = gl.sum(results[0] * vectors.load(here0, 0, K, sums).to(gl.float32), 1)
            from_states1 = gl.sum(results[1] * vectors.load(here1, 0, K, sums).to(gl.float32), 1)
    half0 = Half(here0, x_tile.index(0), own0, delta0, None, results[0], no_sums)
    half1 = Half(here1, x_tile.index(1), own1, delta1, None, results[1], no_sums)

    others = open_rows(other, start, tokens, partners, OTHER_SHARED, K)
    ring = open_ring(tiles, side, others, open_rows(values, start, tokens, partners, VALUE_SHARED, V))
    # Full blocks: decay through the nearest token, so that pairs need no exponential.
    half0, half1 = begin(half0, half1)
    for step in range(ring.full):
        half0, half1, accumulators = _meet(half0, half1, accumulators, ring, step, delta, False, NORMALIZE)
    half0, half1 = end(half0, half1)
    if GATED:
        half0, half1, decay0, decay1 = decay_halves(half0, half1, side)
        from_states0, from_states1 = from_states0 * decay0, from_states1 * decay1
    # The program's own tokens: pairs have decays of their own, or are not causal.
    half0, half1 = begin(half0, half1)
    for step in range(ring.full, ring.steps):
        half0, half1, accumulators = _meet(half0, half1, accumulators, ring, step, delta, True, NORMALIZE)
    half0, half1 = end(half0, half1)
    # The factors of queries belong to their rows; keys took those of each query with its block.
    factor0 = gl.full((HALF,), 1.0, gl.float32, row_layout)
    factor1 = factor0
    if not REVERSE:
        factor0, factor1 = gl.load(weights + here0), gl.load(weights + here1)
    _store(half0, from_states0, factor0, gradients, q_dot_dq, q_dot_dq_of_states, GATED)
    _store(half1, from_states1, factor1, gradients, q_dot_dq, q_dot_dq_of_states, GATED)
