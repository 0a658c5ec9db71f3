"""`S (c * m(x))`: what the state before a chunk gives to its queries, or its gradient to the values."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
)

from zoo.kernels.power.triton.hopper.products import add_scaled, barrier, chunk_bounds, copy_scalars, load_rows

__all__ = ["add_outputs", "outputs_kernel"]


@gluon.jit
def _start(operand, tiles, TRIP: gl.constexpr, SECTION: gl.constexpr, free, K: gl.constexpr, TRIPS: gl.constexpr):
    """Products of the inner blocks from SECTION on: the block itself at the tuple's end, later ones doubled."""
    product = warpgroup_mma_init(free)
    product = warpgroup_mma(
        operand[K // 16], tiles.slice(TRIP * K + SECTION * 16, 16), product, use_acc=False, is_async=True
    )
    for block in gl.static_range(SECTION + 1, K // 16):
        product = warpgroup_mma(operand[block], tiles.slice(TRIP * K + block * 16, 16), product, is_async=True)
    return product


@gluon.jit
def _load_blocks(x, here, tokens, stride, K: gl.constexpr, operand: gl.constexpr):
    blocks = ()
    for block in gl.static_range(K // 16):
        blocks = blocks + (load_rows(x, here, tokens, stride, block * 16, 16, operand) * 2,)
    return blocks


@gluon.jit
def _fetch(
    tiles, states, offsets, section, group, K: gl.constexpr, STEP: gl.constexpr, TRIPS: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Start to copy the tiles of TRIPS channels; those of earlier inner blocks are not needed."""
    if group < K // TRIPS:
        async_copy.async_copy_global_to_shared(
            tiles.index(group % STAGES), states + offsets + group * TRIPS * STEP, mask=section >= group * TRIPS // 16
        )
    async_copy.commit_group()


@gluon.jit
def add_outputs(
    sum0, sum1, free0, free1, x, here0, here1, tokens, stride, states, tiles, scalars, K: gl.constexpr, V: gl.constexpr,
    TRIPS: gl.constexpr, STAGES: gl.constexpr, operand: gl.constexpr, row_layout: gl.constexpr, copied: gl.constexpr,
):  # fmt: skip
    """Add what states give to both halves' 64 values; tiles `[STAGES, TRIPS K, 64]` are for the states' rows.

    x is the first row of K channels, rows `stride` apart; scalars `[2 K, HALF]` are their channels, being copied.
    """
    N: gl.constexpr = 64
    # A tile's rows: inner block b begins after those of the blocks before, which have 16 (b' + 1) channels each.
    row = gl.arange(0, TRIPS * K, gl.SliceLayout(1, copied))
    inner, trip = row % K, row // K
    section = inner // 16
    STEP: gl.constexpr = 16 * V
    offset = 128 * section * (section + 1) + trip * 16 + inner % 16
    offsets = offset[:, None] * V + gl.arange(0, N, gl.SliceLayout(0, copied))[None, :]
    section = section[:, None]
    for stage in gl.static_range(STAGES - 1):
        _fetch(tiles, states, offsets, section, stage, K, STEP, TRIPS, STAGES)

    operand0 = _load_blocks(x, here0, tokens, stride, K, operand)
    operand1 = _load_blocks(x, here1, tokens, stride, K, operand)
    for block in gl.static_range(K // 16):
        # A block's own channels meet each other twice.
        with_own0 = operand0 + (operand0[block] * 0.5,)
        with_own1 = operand1 + (operand1[block] * 0.5,)
        for step in range(16 // TRIPS):
            group = block * (16 // TRIPS) + step
            barrier()
            _fetch(tiles, states, offsets, section, group + STAGES - 1, K, STEP, TRIPS, STAGES)
            async_copy.wait_group(STAGES - 1)
            fence_async_shared()
            sum0, sum1, free0, free1 = add_scaled(
                sum0, sum1, free0, free1, with_own0, with_own1, tiles.index(group % STAGES), scalars, group * TRIPS,
                _start, block, K // 16 - block, TRIPS, K, row_layout,
            )  # fmt: skip
    return sum0, sum1, free0, free1


@gluon.jit(do_not_specialize=["T", "BLOCKS", "X_HEADS", "HEADS", "STATES"])
def outputs_kernel(
    x, x_columns, states, y, bounds, T, C, rows, X_HEADS, HEADS, STATES, BLOCKS,
    K: gl.constexpr, V: gl.constexpr, FIRST: gl.constexpr, PACKED: gl.constexpr,
    TRIPS: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """y `[B T, HEADS, V]` float32, for x `[B T, Hx, K]` and states `[slots, Hs, rows (V + 1)]`.

    x_columns `[slots, Hx, K, C]` is x once more. A program takes 32 tokens a warp, and 64 values. Sequences' first
    chunks count where FIRST.
    """
    HALF: gl.constexpr = 16 * WARPS
    N: gl.constexpr = 64
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, N, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, sums)
    copied: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])

    program = gl.program_id(0)
    token = program % BLOCKS * 2 * HALF
    columns = program // BLOCKS % (V // N) * N
    head = program // (BLOCKS * (V // N)) % HEADS
    slot = (program // (BLOCKS * (V // N) * HEADS)).to(gl.int64)
    start, tokens, place = chunk_bounds(slot, T, C, bounds, PACKED)
    if token >= tokens or (place == 0 and not FIRST):
        return
    x_head = head * X_HEADS // HEADS
    x += (start * X_HEADS + x_head) * K
    x_columns += (slot * X_HEADS + x_head) * K * C + token
    states += (slot * STATES + head * STATES // HEADS) * rows * (V + 1) + columns
    y += (start * HEADS + head) * V + columns

    tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TRIPS * K, N], gl.NVMMASharedLayout(128, 16, 2))
    scalars = gl.allocate_shared_memory(gl.bfloat16, [K, 2 * HALF], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    copy_scalars(scalars, x_columns, C, K, 2 * HALF, WARPS)
    scalars = scalars._reinterpret(gl.bfloat16, [2 * K, HALF], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    here0 = token + gl.arange(0, HALF, row_layout)
    here1 = here0 + HALF
    sum0 = gl.zeros((HALF, N), gl.float32, sums)
    sum1 = gl.zeros((HALF, N), gl.float32, sums)
    free0 = gl.zeros((HALF, N), gl.float32, sums)
    free1 = gl.zeros((HALF, N), gl.float32, sums)
    sum0, sum1, _, _ = add_outputs(
        sum0, sum1, free0, free1, x, here0, here1, tokens, X_HEADS * K, states, tiles, scalars, K, V, TRIPS, STAGES,
        operand, row_layout, copied,
    )  # fmt: skip
    value = gl.arange(0, N, gl.SliceLayout(0, sums))
    gl.store(y + here0[:, None] * HEADS * V + value[None, :], sum0, (here0 < tokens)[:, None])
    gl.store(y + here1[:, None] * HEADS * V + value[None, :], sum1, (here1 < tokens)[:, None])
