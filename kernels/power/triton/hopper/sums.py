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
    """Pair number `pair` of an outer channel's block and an inner block that is not before it."""
    section = 0
    begins = 0
    block = pair
    for later in gl.static_range(1, K // 16):
        begins += K // 16 - later + 1
        if pair >= begins:
            section = later
            block = pair - begins + later
    return section, block


@gluon.jit
def _fetch(
    inner_tiles, outer_tiles, y_tiles, x_columns, x_decayed, y, step, steps, blocks, tokens, slot, state, C,
    X_HEADS, Y_HEADS, STATES, REPEATS, K: gl.constexpr, V: gl.constexpr, N: gl.constexpr, STAGES: gl.constexpr,
    columns_layout: gl.constexpr, rows_layout: gl.constexpr,
):  # fmt: skip
    """Start to copy 64 tokens: all channels, the same with decay, and N values."""
    if step < steps + 1:  # one more, of zeros, since steps may be taken in pairs
        exists = step < steps
        head = state * REPEATS + gl.minimum(step, steps - 1) // blocks
        token = step % blocks * 64
        stage = step % STAGES
        heads = STATES * REPEATS
        channel = gl.arange(0, K, gl.SliceLayout(1, columns_layout))[:, None]
        at = channel * C + token + gl.arange(0, 64, gl.SliceLayout(0, columns_layout))[None, :]
        x_head = slot * X_HEADS + head * X_HEADS // heads
        async_copy.async_copy_global_to_shared(inner_tiles.index(stage), x_columns + x_head * K * C + at, mask=exists)
        async_copy.async_copy_global_to_shared(
            outer_tiles.index(stage), x_decayed + (slot * heads + head) * K * C + at, mask=exists
        )
        # Beyond the chunk's end decayed columns are zero.
        there = gl.minimum(token + gl.arange(0, 64, gl.SliceLayout(1, rows_layout)), tokens - 1)[:, None]
        value = gl.arange(0, N, gl.SliceLayout(0, rows_layout))[None, :]
        y_head = head * Y_HEADS // heads
        async_copy.async_copy_global_to_shared(
            y_tiles.index(stage), y + (there * Y_HEADS + y_head) * V + value, mask=exists
        )
    async_copy.commit_group()


@gluon.jit(do_not_specialize=["T"])
def sums_kernel(
    x_columns, x_decayed, y, sums, bounds, T, C, rows, X_HEADS, Y_HEADS, STATES, REPEATS,
    K: gl.constexpr, V: gl.constexpr, TILES: gl.constexpr, PER_TRIP: gl.constexpr, PACKED: gl.constexpr,
):  # fmt: skip
    """S's part of `sums [slots, Hs, rows (V + 1)]`; arguments as in `state_sums_kernel`, inner blocks of 16 channels.

    A tile is 8 outer channels, one for each warp, by an inner block. A program takes TILES of them, and 64 values, and
    PER_TRIP blocks of 64 tokens a trip of its loop.
    """
    WARPS: gl.constexpr = 8
    STAGES: gl.constexpr = 3 * PER_TRIP
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

    PROGRAMS: gl.constexpr = K // 16 * (K // 16 + 1) // 2 // TILES * 2
    program = gl.program_id(0)
    half = program % 2
    first = program % PROGRAMS // 2 * TILES
    columns = program // PROGRAMS % (V // N) * N
    state = program // (PROGRAMS * (V // N)) % STATES
    slot = (program // (PROGRAMS * (V // N) * STATES)).to(gl.int64)
    start, tokens, _ = chunk_bounds(slot, T, C, bounds, PACKED)
    if tokens <= 0:
        return
    y += start * Y_HEADS * V + columns
    sums += (slot * STATES + state) * rows * (V + 1) + columns

    plain: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    inner_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, K, 64], plain)
    outer_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, K, 64], plain)
    y_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 64, N], gl.NVMMASharedLayout(128, 16, 2))
    inner_blocks = inner_tiles._reinterpret(gl.bfloat16, [STAGES * K // 16, 16, 64], plain)
    outer_eights = outer_tiles._reinterpret(gl.bfloat16, [STAGES * K // 8, 8, 64], plain)

    blocks = gl.cdiv(tokens, 64)
    # The compiler must know that the loop runs, or it waits for each product.
    steps = gl.maximum(blocks * REPEATS, 1)
    for step in gl.static_range(2 * PER_TRIP):
        _fetch(
            inner_tiles, outer_tiles, y_tiles, x_columns, x_decayed, y, step, steps, blocks, tokens, slot, state, C,
            X_HEADS, Y_HEADS, STATES, REPEATS, K, V, N, STAGES, copied, copied,
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
                section, block = _section_and_block(first + tile, K)
                inner = inner_blocks.index(stage * (K // 16) + block).load(gl.SliceLayout(0, expanded))
                outer = outer_eights.index(stage * (K // 8) + section * 2 + half).load(gl.SliceLayout(1, expanded))
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
                inner_tiles, outer_tiles, y_tiles, x_columns, x_decayed, y, (trip + 2) * PER_TRIP + part, steps, blocks,
                tokens, slot, state, C, X_HEADS, Y_HEADS, STATES, REPEATS, K, V, N, STAGES, copied, copied,
            )  # fmt: skip
    results = warpgroup_mma_wait(0, deps=results)
    row = gl.arange(0, 128, gl.SliceLayout(1, copied))[:, None]
    value = gl.arange(0, N, gl.SliceLayout(0, copied))[None, :]
    for tile in gl.static_range(TILES):
        section, block = _section_and_block(first + tile, K)
        base = 128 * block * (block + 1) + (section * 16 + half * 8) * 16
        result = gl.convert_layout(results[tile].to(gl.bfloat16), copied)
        gl.store(sums + (base + row) * V + value, result)
