"""Gradients of the queries, or of the keys: what the states give and what the chunk gives, in one program."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from zoo.kernels.power.triton.hopper.chunk import (
    SIZE,
    between,
    beyond,
    decay,
    fetch_block,
    fetch_rows,
    load_values,
    next_block,
    pair_decay,
    place_of,
    times_normaliser,
    toward,
)
from zoo.kernels.power.triton.hopper.gradients import add_gradients
from zoo.kernels.power.triton.hopper.products import (
    barrier,
    chunk_bounds,
    copy_scalars,
    load_rows,
    load_symmetric,
)

__all__ = ["differentiate_kernel"]


@gluon.jit
def _add(
    result, along, x_tile, own, tile, block, free, other_free, delta, factor, operand: gl.constexpr,
    GATED: gl.constexpr,
):  # fmt: skip
    """Add the gradients of a block's weights times its tokens; to along, times scores, before they are rounded."""
    score = warpgroup_mma(x_tile, tile.permute((1, 0)), warpgroup_mma_init(free), use_acc=False, is_async=True)
    gradient = warpgroup_mma(own, block.permute((1, 0)), warpgroup_mma_init(other_free), use_acc=False, is_async=True)
    free, other_free = warpgroup_mma_wait(0, deps=[score, gradient])
    gradient = (other_free - delta) * (free * factor)
    if GATED:
        # The wait keeps the sum from being moved behind the next products, which start where it reads.
        along += gl.sum(gradient * free, 1)
        free, other_free, along = warpgroup_mma_wait(0, deps=[free, other_free, along])
    result = warpgroup_mma(gl.convert_layout(gradient.to(gl.bfloat16), operand), tile, result, is_async=True)
    return result, along, free, other_free


@gluon.jit
def _taken(delta0, delta1, delta, at, NORMALIZE: gl.constexpr, REVERSE: gl.constexpr):
    """What is taken from both halves' products with the values: delta belongs to the queries, here or there."""
    if NORMALIZE and REVERSE:
        taken = gl.load(delta + at)[None, :]
        return taken, taken
    else:
        return delta0[:, None], delta1[:, None]


@gluon.jit
def _store(
    result, in_chunk, by_states, factor, dx, along, state_along, here, tokens, HEADS, K: gl.constexpr,
    sums: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    # Weights are homogeneous of degree 2 in x.
    result *= 2 * factor[:, None]
    exists = here < tokens
    channel = gl.arange(0, K, gl.SliceLayout(0, sums))
    gl.store(dx + here[:, None] * HEADS * K + channel[None, :], result.to(dx.dtype.element_ty), exists[:, None])
    if GATED:
        gl.store(along + here, gl.where(exists, in_chunk * factor, 0.0))
        gl.store(state_along + here, gl.where(exists, by_states * factor, 0.0))


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
    HALF: gl.constexpr = 16 * WARPS
    BLOCK: gl.constexpr = 2 * HALF
    STAGES: gl.constexpr = 2
    RING: gl.constexpr = STAGES * TRIPS // 2  # blocks of the chunk that shared memory holds
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, SIZE, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, sums)
    column_layout: gl.constexpr = gl.SliceLayout(0, sums)
    copied: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)

    program = gl.program_id(0)
    token = program % BLOCKS * BLOCK
    head = program // BLOCKS % HEADS
    slot = (program // (BLOCKS * HEADS)).to(gl.int64)
    start, tokens, place = chunk_bounds(slot, T, C, bounds, PACKED)
    if token >= tokens:
        return
    STATES = HEADS // SHARED
    state = head // SHARED
    partners = state * PARTNERS
    X_HEADS = HEADS // X_SHARED
    OWN_HEADS = HEADS // OWN_SHARED
    OTHER_HEADS = STATES * PARTNERS // OTHER_SHARED
    VALUE_HEADS = STATES * PARTNERS // VALUE_SHARED
    x += (start * X_HEADS + head // X_SHARED) * K
    x_columns += (slot * X_HEADS + head // X_SHARED) * K * C + token
    own += (start * OWN_HEADS + head // OWN_SHARED) * V
    other += start * OTHER_HEADS * K
    values += start * VALUE_HEADS * V
    states += (slot * STATES + state) * rows * (V + 1)
    gates += (slot * STATES + state) * C
    weights += (slot * HEADS + head) * PARTNERS * C
    delta += (slot * HEADS + head) * PARTNERS * C
    dx += (start * HEADS + head) * K
    state_along = along + ((slot + SLOTS) * HEADS + head) * C
    along += (slot * HEADS + head) * C

    tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TRIPS * SIZE, V], swizzled)
    x_tile = gl.allocate_shared_memory(gl.bfloat16, [2, HALF, K], swizzled)
    x_row = gl.minimum(token + gl.arange(0, HALF, gl.SliceLayout(1, copied)), tokens - 1)
    fetch_rows(x_tile.index(0), x, x_row, X_HEADS * K, copied)
    fetch_rows(x_tile.index(1), x, gl.minimum(x_row + HALF, tokens - 1), X_HEADS * K, copied)
    here0 = token + gl.arange(0, HALF, row_layout)
    here1 = here0 + HALF
    own0 = load_rows(own, here0, tokens, OWN_HEADS * V, 0, V, operand)
    own1 = load_rows(own, here1, tokens, OWN_HEADS * V, 0, V, operand)
    sum0 = gl.zeros((HALF, SIZE), gl.float32, sums)
    sum1 = gl.zeros((HALF, SIZE), gl.float32, sums)
    free0 = gl.zeros((HALF, SIZE), gl.float32, sums)
    free1 = gl.zeros((HALF, SIZE), gl.float32, sums)
    delta0 = gl.zeros((HALF,), gl.float32, row_layout)
    delta1 = gl.zeros((HALF,), gl.float32, row_layout)
    if NORMALIZE and not REVERSE:
        delta0, delta1 = gl.load(delta + here0), gl.load(delta + here1)
    in_chunk0 = gl.zeros((HALF,), gl.float32, row_layout)
    in_chunk1 = gl.zeros((HALF,), gl.float32, row_layout)
    by_states0 = gl.zeros((HALF,), gl.float32, row_layout)
    by_states1 = gl.zeros((HALF,), gl.float32, row_layout)
    nearest = gl.load(gates + (gl.minimum(token + BLOCK, tokens) - 1 if REVERSE else token)) if GATED else 0.0
    if HAS_STATES:
        if HAS_NORMALISER:
            z = gl.allocate_shared_memory(gl.bfloat16, [K, K], swizzled)
            load_symmetric(z, states + rows * V, K, copied)
            async_copy.commit_group()
            async_copy.wait_group(0)
            fence_async_shared()
            barrier()
            free0 = times_normaliser(x_tile.index(0), z, free0)
            free1 = times_normaliser(x_tile.index(1), z, free1)
            sum0 = free0 if REVERSE else free0 * -delta0[:, None]
            sum1 = free1 if REVERSE else free1 * -delta1[:, None]
        if FIRST or place > 0:
            scalars = gl.allocate_shared_memory(gl.bfloat16, [K, BLOCK], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
            copy_scalars(scalars, x_columns, C, K, BLOCK, WARPS)
            sum0, sum1, free0, free1 = add_gradients(
                sum0, sum1, free0, free1, own0, own1, states, tiles,
                scalars._reinterpret(gl.bfloat16, [2 * K, HALF], gl.SwizzledSharedLayout(1, 1, 1, [0])), 0,
                K, V, TRIPS, STAGES, row_layout, copied,
            )  # fmt: skip
            barrier()
        if GATED:
            left = decay(gl.load(gates + C - 1), nearest) if REVERSE else gl.exp2(nearest)
            sum0 *= left
            sum1 *= left
            by_states0 = gl.sum(sum0 * load_values(x, here0, tokens, X_HEADS * K, K, sums), 1)
            by_states1 = gl.sum(sum1 * load_values(x, here1, tokens, X_HEADS * K, K, sums), 1)

    pool = tiles._reinterpret(gl.bfloat16, [2 * RING, SIZE, SIZE], swizzled)
    full = gl.maximum(gl.cdiv(tokens - token - BLOCK, SIZE) if REVERSE else token // SIZE, 1) * PARTNERS
    steps = full + BLOCK // SIZE * PARTNERS
    for ahead in gl.static_range(2):
        partner, first = place_of(ahead, full, PARTNERS, token, BLOCK, REVERSE)
        fetch_block(
            pool, ahead, other, values, partners + partner, first, tokens, OTHER_HEADS, OTHER_SHARED,
            VALUE_HEADS, VALUE_SHARED, K, V, copied,
        )  # fmt: skip
    sum0, sum1 = warpgroup_mma_init(sum0), warpgroup_mma_init(sum1)
    for step in range(full):
        partner, first = place_of(step, full, PARTNERS, token, BLOCK, REVERSE)
        there = first + gl.arange(0, SIZE, column_layout)
        # The loop runs at least once, so that products may stay in flight, though there may be no such block.
        factor = gl.where(there < (tokens if REVERSE else token), 1.0, 0.0)
        at = partner * C + gl.minimum(there, C - 1)
        if REVERSE:
            factor *= gl.load(weights + at)
        taken0, taken1 = _taken(delta0, delta1, delta, at, NORMALIZE, REVERSE)
        if GATED:
            gates_there = gl.load(gates + gl.minimum(there, C - 1))
            factor *= beyond(nearest, gates_there, REVERSE)
        next_block(
            pool, step, steps, full, other, values, partners, token, tokens, OTHER_HEADS, OTHER_SHARED, VALUE_HEADS,
            VALUE_SHARED, PARTNERS, K, V, BLOCK, RING, REVERSE, copied,
        )  # fmt: skip
        tile, block = pool.index(step % RING * 2), pool.index(step % RING * 2 + 1)
        sum0, in_chunk0, free0, free1 = _add(
            sum0, in_chunk0, x_tile.index(0), own0, tile, block, free0, free1, taken0, factor[None, :], operand, GATED
        )  # fmt: skip
        sum1, in_chunk1, free0, free1 = _add(
            sum1, in_chunk1, x_tile.index(1), own1, tile, block, free0, free1, taken1, factor[None, :], operand, GATED
        )  # fmt: skip
    sum0, sum1 = warpgroup_mma_wait(0, deps=[sum0, sum1])
    if GATED:
        gates0, gates1 = gl.load(gates + here0), gl.load(gates + here1)
        left0, left1 = toward(nearest, gates0, REVERSE), toward(nearest, gates1, REVERSE)
        sum0, in_chunk0, by_states0 = sum0 * left0[:, None], in_chunk0 * left0, by_states0 * left0
        sum1, in_chunk1, by_states1 = sum1 * left1[:, None], in_chunk1 * left1, by_states1 * left1
    sum0, sum1 = warpgroup_mma_init(sum0), warpgroup_mma_init(sum1)
    for step in range(full, steps):
        partner, first = place_of(step, full, PARTNERS, token, BLOCK, REVERSE)
        there = first + gl.arange(0, SIZE, column_layout)
        factor = gl.where(there < tokens, 1.0, 0.0)
        at = partner * C + there
        if REVERSE:
            factor *= gl.load(weights + at)
        taken0, taken1 = _taken(delta0, delta1, delta, at, NORMALIZE, REVERSE)
        factor0 = between(here0, there, factor, REVERSE)
        factor1 = between(here1, there, factor, REVERSE)
        if GATED:
            gates_there = gl.load(gates + there)
            factor0 *= pair_decay(gates0, gates_there, REVERSE)
            factor1 *= pair_decay(gates1, gates_there, REVERSE)
        next_block(
            pool, step, steps, full, other, values, partners, token, tokens, OTHER_HEADS, OTHER_SHARED, VALUE_HEADS,
            VALUE_SHARED, PARTNERS, K, V, BLOCK, RING, REVERSE, copied,
        )  # fmt: skip
        tile, block = pool.index(step % RING * 2), pool.index(step % RING * 2 + 1)
        sum0, in_chunk0, free0, free1 = _add(
            sum0, in_chunk0, x_tile.index(0), own0, tile, block, free0, free1, taken0, factor0, operand, GATED
        )  # fmt: skip
        sum1, in_chunk1, free0, free1 = _add(
            sum1, in_chunk1, x_tile.index(1), own1, tile, block, free0, free1, taken1, factor1, operand, GATED
        )  # fmt: skip
    sum0, sum1 = warpgroup_mma_wait(0, deps=[sum0, sum1])
    factor0 = gl.full((HALF,), 1.0, gl.float32, row_layout)
    factor1 = factor0
    if not REVERSE:
        factor0, factor1 = gl.load(weights + here0), gl.load(weights + here1)
    _store(sum0, in_chunk0, by_states0, factor0, dx, along, state_along, here0, tokens, HEADS, K, sums, GATED)
    _store(sum1, in_chunk1, by_states1, factor1, dx, along, state_along, here1, tokens, HEADS, K, sums, GATED)
