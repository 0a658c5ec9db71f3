"""Outputs, or gradients of the values: what the state gives and what the chunk gives, in one program."""

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
from zoo.kernels.power.triton.hopper.outputs import add_outputs
from zoo.kernels.power.triton.hopper.products import barrier, chunk_bounds, copy_scalars, load_symmetric
from zoo.kernels.power.triton.output import VANISHING

__all__ = ["attend_kernel"]


@gluon.jit
def _scores(x_tile, tile, free):
    return warpgroup_mma(x_tile, tile.permute((1, 0)), warpgroup_mma_init(free), use_acc=False, is_async=True)


@gluon.jit
def _attend(
    sum0, sum1, total0, total1, free0, free1, x0, x1, tile, values, factor0, factor1, operand: gl.constexpr,
    NORMALIZE: gl.constexpr,
):  # fmt: skip
    """Add a block's weights, squared scores times factors, times its values."""
    score0 = _scores(x0, tile, free0)
    score1 = _scores(x1, tile, free1)
    free0 = warpgroup_mma_wait(1, deps=[score0])
    weight0 = free0 * free0 * factor0
    sum0 = warpgroup_mma(gl.convert_layout(weight0.to(gl.bfloat16), operand), values, sum0, is_async=True)
    if NORMALIZE:
        total0 += gl.sum(weight0, 1)
    free1 = warpgroup_mma_wait(1, deps=[score1])
    weight1 = free1 * free1 * factor1
    sum1 = warpgroup_mma(gl.convert_layout(weight1.to(gl.bfloat16), operand), values, sum1, is_async=True)
    if NORMALIZE:
        total1 += gl.sum(weight1, 1)
    return sum0, sum1, total0, total1, free0, free1


@gluon.jit
def _store(
    result, total, y, exact, denominator, here, tokens, scale, HEADS, V: gl.constexpr, sums: gl.constexpr,
    NORMALIZE: gl.constexpr, EXACT: gl.constexpr,
):  # fmt: skip
    exists = here < tokens
    result *= scale
    if NORMALIZE:
        total *= scale
        gl.store(denominator + here * HEADS, total, exists)
        vanishes = gl.abs(total) < VANISHING
        result = gl.where(vanishes[:, None], 0.0, result / gl.where(vanishes, 1.0, total)[:, None])
    places = here[:, None] * HEADS * V + gl.arange(0, V, gl.SliceLayout(0, sums))[None, :]
    gl.store(y + places, result.to(y.dtype.element_ty), exists[:, None])
    if EXACT:
        gl.store(exact + places, result, exists[:, None])


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
    HALF: gl.constexpr = 16 * WARPS
    BLOCK: gl.constexpr = 2 * HALF
    STAGES: gl.constexpr = 2
    RING: gl.constexpr = STAGES * TRIPS * K // SIZE // 2  # blocks of the chunk that shared memory holds
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, SIZE, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, sums)
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
    OTHER_HEADS = STATES * PARTNERS // OTHER_SHARED
    VALUE_HEADS = STATES * PARTNERS // VALUE_SHARED
    x += (start * X_HEADS + head // X_SHARED) * K
    x_columns += (slot * X_HEADS + head // X_SHARED) * K * C + token
    other += start * OTHER_HEADS * K
    values += start * VALUE_HEADS * V
    states += (slot * STATES + state) * rows * (V + 1)
    gates += (slot * STATES + state) * C
    weights += (slot * HEADS + head) * PARTNERS * C
    y += (start * HEADS + head) * V
    exact += (start * HEADS + head) * V
    denominator += start * HEADS + head

    tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TRIPS * K, SIZE], swizzled)
    x_tile = gl.allocate_shared_memory(gl.bfloat16, [2, HALF, K], swizzled)
    x_row = gl.minimum(token + gl.arange(0, HALF, gl.SliceLayout(1, copied)), tokens - 1)
    fetch_rows(x_tile.index(0), x, x_row, X_HEADS * K, copied)
    fetch_rows(x_tile.index(1), x, gl.minimum(x_row + HALF, tokens - 1), X_HEADS * K, copied)
    here0 = token + gl.arange(0, HALF, row_layout)
    here1 = here0 + HALF
    sum0 = gl.zeros((HALF, SIZE), gl.float32, sums)
    sum1 = gl.zeros((HALF, SIZE), gl.float32, sums)
    free0 = gl.zeros((HALF, SIZE), gl.float32, sums)
    free1 = gl.zeros((HALF, SIZE), gl.float32, sums)
    total0 = gl.zeros((HALF,), gl.float32, row_layout)
    total1 = gl.zeros((HALF,), gl.float32, row_layout)
    # The program's token that is nearest to those of full blocks.
    nearest = gl.load(gates + (gl.minimum(token + BLOCK, tokens) - 1 if REVERSE else token)) if GATED else 0.0
    if HAS_STATES:
        scalars = gl.allocate_shared_memory(gl.bfloat16, [K, BLOCK], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        if NORMALIZE:
            z = gl.allocate_shared_memory(gl.bfloat16, [K, K], swizzled)
            load_symmetric(z, states + rows * V, K, copied)
            async_copy.commit_group()
            async_copy.wait_group(0)
            fence_async_shared()
            barrier()
            free0 = times_normaliser(x_tile.index(0), z, free0)
            total0 = gl.sum(free0 * load_values(x, here0, tokens, X_HEADS * K, K, sums), 1)
            free1 = times_normaliser(x_tile.index(1), z, free1)
            total1 = gl.sum(free1 * load_values(x, here1, tokens, X_HEADS * K, K, sums), 1)
        if FIRST or place > 0:
            copy_scalars(scalars, x_columns, C, K, BLOCK, WARPS)
            sum0, sum1, free0, free1 = add_outputs(
                sum0, sum1, free0, free1, x, here0, here1, tokens, X_HEADS * K, states, tiles,
                scalars._reinterpret(gl.bfloat16, [2 * K, HALF], gl.SwizzledSharedLayout(1, 1, 1, [0])),
                K, V, TRIPS, STAGES, operand, row_layout, copied,
            )  # fmt: skip
            barrier()
        if GATED:
            left = decay(gl.load(gates + C - 1), nearest) if REVERSE else gl.exp2(nearest)
            sum0 *= left
            sum1 *= left
            total0 *= left
            total1 *= left

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
        there = first + gl.arange(0, SIZE, gl.SliceLayout(0, sums))
        # The loop runs at least once, so that products may stay in flight, though there may be no such block.
        factor = gl.where(there < (tokens if REVERSE else token), 1.0, 0.0)
        if REVERSE:
            factor *= gl.load(weights + partner * C + gl.minimum(there, C - 1))
        if GATED:
            gates_there = gl.load(gates + gl.minimum(there, C - 1))
            factor *= beyond(nearest, gates_there, REVERSE)
        next_block(
            pool, step, steps, full, other, values, partners, token, tokens, OTHER_HEADS, OTHER_SHARED, VALUE_HEADS,
            VALUE_SHARED, PARTNERS, K, V, BLOCK, RING, REVERSE, copied,
        )  # fmt: skip
        sum0, sum1, total0, total1, free0, free1 = _attend(
            sum0, sum1, total0, total1, free0, free1, x_tile.index(0), x_tile.index(1), pool.index(step % RING * 2),
            pool.index(step % RING * 2 + 1), factor[None, :], factor[None, :], operand, NORMALIZE,
        )  # fmt: skip
    sum0, sum1 = warpgroup_mma_wait(0, deps=[sum0, sum1])
    if GATED:
        gates0, gates1 = gl.load(gates + here0), gl.load(gates + here1)
        left0, left1 = toward(nearest, gates0, REVERSE), toward(nearest, gates1, REVERSE)
        sum0, total0 = sum0 * left0[:, None], total0 * left0
        sum1, total1 = sum1 * left1[:, None], total1 * left1
    sum0, sum1 = warpgroup_mma_init(sum0), warpgroup_mma_init(sum1)
    for step in range(full, steps):
        partner, first = place_of(step, full, PARTNERS, token, BLOCK, REVERSE)
        there = first + gl.arange(0, SIZE, gl.SliceLayout(0, sums))
        factor = gl.where(there < tokens, 1.0, 0.0)
        if REVERSE:
            factor *= gl.load(weights + partner * C + there)
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
        sum0, sum1, total0, total1, free0, free1 = _attend(
            sum0, sum1, total0, total1, free0, free1, x_tile.index(0), x_tile.index(1), pool.index(step % RING * 2),
            pool.index(step % RING * 2 + 1), factor0, factor1, operand, NORMALIZE,
        )  # fmt: skip
    sum0, sum1 = warpgroup_mma_wait(0, deps=[sum0, sum1])
    _store(sum0, total0, y, exact, denominator, here0, tokens, scale, HEADS, V, sums, NORMALIZE, EXACT)
    _store(sum1, total1, y, exact, denominator, here1, tokens, scale, HEADS, V, sums, NORMALIZE, EXACT)
