"""What one chunk adds to the state: `sum_t decay_t m(x_t) y_t^T`."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from zoo.kernels.power.triton.hopper.products import barrier, chunk_bounds

__all__ = ["sums_kernel"]


@gluon.jit
def _section_and_block(pair, K: gl.constexpr):
    """Pair number `pair` of an outer channels' block and an inner block that is not before it."""
    section = 0
    block = pair
    begins = 0
    for later in gl.static_range(1, K // 16):
        begins += K // 16 - later + 1
        if pair >= begins:
            section = later
            block = pair - begins + later
    return section, block


@gluon.jit
def _fetch(
    inner_tiles, outer_tiles, y_tiles, x_columns, x_decayed, y, inner_channel, outer_channel, step, steps, blocks,
    tokens, state, C, X_SHARED, Y_HEADS, Y_SHARED, REPEATS, K: gl.constexpr, V: gl.constexpr, N: gl.constexpr,
    STAGES: gl.constexpr, copied: gl.constexpr,
):  # fmt: skip
    """Start to copy 64 tokens: inner channels, outer channels with decay, and N values."""
    if step < steps + STAGES // 3 - 1:  # zeros to the end of a trip
        exists = step < steps
        stage = step % STAGES
        head = state
        token = step * 64
        if REPEATS > 1:
            head = state * REPEATS + gl.minimum(step, steps - 1) // blocks
            token = step % blocks * 64
        at = token + gl.arange(0, 64, gl.SliceLayout(0, copied))[None, :]
        async_copy.async_copy_global_to_shared(
            inner_tiles.index(stage), x_columns + head // X_SHARED * K * C + inner_channel * C + at, mask=exists
        )
        async_copy.async_copy_global_to_shared(
            outer_tiles.index(stage), x_decayed + head * K * C + outer_channel * C + at, mask=exists
        )
        # Beyond the chunk's end decayed columns are zero.
        there = gl.minimum(token + gl.arange(0, 64, gl.SliceLayout(1, copied)), tokens - 1)[:, None]
        value = gl.arange(0, N, gl.SliceLayout(0, copied))[None, :]
        async_copy.async_copy_global_to_shared(
            y_tiles.index(stage), y + (there * Y_HEADS + head // Y_SHARED) * V + value, mask=exists
        )
    async_copy.commit_group()


@gluon.jit
def _channels(first, second, layout: gl.constexpr):
    """The channels of two blocks of 16."""
    row = gl.arange(0, 32, gl.SliceLayout(1, layout))
    return (gl.where(row < 16, first, second) * 16 + row % 16)[:, None]


@gluon.jit(do_not_specialize=["T", "X_HEADS", "Y_HEADS", "STATES"])
def sums_kernel(
    x_columns, x_decayed, y, sums, bounds, T, C, rows, X_HEADS, X_SHARED, Y_HEADS, Y_SHARED, STATES, REPEATS,
    K: gl.constexpr, V: gl.constexpr, PER_TRIP: gl.constexpr, PACKED: gl.constexpr,
):  # fmt: skip
    """S's part of `sums [slots, Hs, rows (V + 1)]`; arguments as in `state_sums_kernel`, inner blocks of 16 channels.

    A tile is 8 outer channels, one for each warp, by an inner block. A program takes two pairs of blocks of 16 outer
    and 16 inner channels, so four tiles, and 64 values, and PER_TRIP blocks of 64 tokens a trip of its loop.

    REPEATS heads add up in a state; X_SHARED of them have an x in common, Y_SHARED a y.
    """
    WARPS: gl.constexpr = 8
    STAGES: gl.constexpr = 3 * PER_TRIP
    TILES: gl.constexpr = 4
    N: gl.constexpr = 64
    totals: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, N, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, totals, 2)
    # The operand's layout, `[outer, inner, token]`: one outer channel a warp.
    expanded: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 1], [0, 8, 0], [0, 0, 8], [0, 0, 16], [0, 0, 32]],
        lane_bases=[[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        warp_bases=[[1, 0, 0], [2, 0, 0], [4, 0, 0]], block_bases=[], shape=[8, 16, 64],
    )  # fmt: skip
    copied: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])

    PROGRAMS: gl.constexpr = K // 16 * (K // 16 + 1) // 4
    program = gl.program_id(0)
    first = program % PROGRAMS * 2
    columns = program // PROGRAMS % (V // N) * N
    state = program // (PROGRAMS * (V // N)) % STATES
    slot = (program // (PROGRAMS * (V // N) * STATES)).to(gl.int64)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    if tokens <= 0:
        return
    x_columns += slot * X_HEADS * K * C
    x_decayed += slot * STATES * REPEATS * K * C
    y += start * Y_HEADS * V + columns
    sums += (slot * STATES + state) * rows * (V + 1) + columns
    section0, block0 = _section_and_block(first, K)
    section1, block1 = _section_and_block(first + 1, K)
    inner_channel, outer_channel = _channels(block0, block1, copied), _channels(section0, section1, copied)

    plain: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    inner_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 32, 64], plain)
    outer_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 32, 64], plain)
    y_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 64, N], gl.NVMMASharedLayout(128, 16, 2))
    inner_blocks = inner_tiles._reinterpret(gl.bfloat16, [STAGES * 2, 16, 64], plain)
    outer_eights = outer_tiles._reinterpret(gl.bfloat16, [STAGES * TILES, 8, 64], plain)

    blocks = gl.cdiv(tokens, 64)
    # The compiler must know that the loop runs, or it waits for each product.
    steps = gl.maximum(blocks * REPEATS, 1)
    for step in gl.static_range(2 * PER_TRIP):
        _fetch(
            inner_tiles, outer_tiles, y_tiles, x_columns, x_decayed, y, inner_channel, outer_channel, step, steps,
            blocks, tokens, state, C, X_SHARED, Y_HEADS, Y_SHARED, REPEATS, K, V, N, STAGES, copied,
        )  # fmt: skip
    results = ()
    for tile in gl.static_range(TILES):
        result = gl.zeros((128, N), gl.float32, totals)
        results = results + (result if tile < TILES - 1 else warpgroup_mma_init(result),)
    for trip in range(gl.cdiv(steps, PER_TRIP)):
        async_copy.wait_group(PER_TRIP)
        fence_async_shared()
        barrier()
        for part in gl.static_range(PER_TRIP):
            stage = (trip * PER_TRIP + part) % STAGES
            done = ()
            running = ()
            for tile in gl.static_range(TILES):
                if tile % 2 == 0:
                    inner = inner_blocks.index(stage * 2 + tile // 2).load(gl.SliceLayout(0, expanded))
                outer = outer_eights.index(stage * TILES + tile).load(gl.SliceLayout(1, expanded))
                monomials = (inner[None, :, :] * outer[:, None, :]).reshape([128, 64])
                monomials = gl.convert_layout(monomials, operand, assert_trivial=True)
                product = warpgroup_mma(monomials, y_tiles.index(stage), results[tile], is_async=True)
                if tile > 0:  # to have the registers of its monomials again
                    done = done + (warpgroup_mma_wait(1, deps=[running]),)
                running = product
            results = done + (running,)
        # The trip before is done with its stages.
        barrier()
        for part in gl.static_range(PER_TRIP):
            _fetch(
                inner_tiles, outer_tiles, y_tiles, x_columns, x_decayed, y, inner_channel, outer_channel,
                (trip + 2) * PER_TRIP + part, steps, blocks, tokens, state, C, X_SHARED, Y_HEADS, Y_SHARED, REPEATS,
                K, V, N, STAGES, copied,
            )  # fmt: skip
    results = warpgroup_mma_wait(0, deps=results)
    async_copy.wait_group(0)  # what follows takes the shared memory that zeros are still being written to
    barrier()
    row = gl.arange(0, 128, gl.SliceLayout(1, copied))[:, None]
    value = gl.arange(0, N, gl.SliceLayout(0, copied))[None, :]
    for tile in gl.static_range(TILES):
        section, block = (section0, block0) if tile < 2 else (section1, block1)
        base = 128 * block * (block + 1) + (section * 16 + tile % 2 * 8) * 16
        result = gl.convert_layout(results[tile].to(sums.dtype.element_ty), copied)
        gl.store(sums + (base + row) * V + value, result)
