"""`sum_i x_i (S_i y)`, S as a symmetric tensor: half the gradient for x of `m(x) S y`."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
)

from zoo.kernels.power.triton.hopper.products import add_scaled, barrier, chunk_bounds, copy_scalars, load_rows

__all__ = ["add_gradients", "gradients_kernel"]


@gluon.jit
def _start(operand, tiles, TRIP: gl.constexpr, SECTION: gl.constexpr, free, K: gl.constexpr, TRIPS: gl.constexpr):
    """All of a tile at once, transposed."""
    tile = tiles.slice(TRIP * 64, 64).permute((1, 0))
    return warpgroup_mma(operand, tile, warpgroup_mma_init(free), use_acc=False, is_async=True)


@gluon.jit
def _fetch(
    tiles, states, inner, trip, value, group, K: gl.constexpr, V: gl.constexpr,
    TRIPS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start to copy the tiles of TRIPS channels; rows that one of them lacks are the other channel's."""
    if group < K // TRIPS:
        channel = group * TRIPS + trip
        swapped = channel // 16 > inner // 16
        later = gl.maximum(channel // 16, inner // 16)
        row = 128 * later * (later + 1) + gl.where(swapped, inner, channel) * 16
        row += gl.where(swapped, channel, inner) % 16
        async_copy.async_copy_global_to_shared(tiles.index(group % STAGES), states + row[:, None] * V + value[None, :])
    async_copy.commit_group()


@gluon.jit
def add_gradients(
    sum0, sum1, free0, free1, operand0, operand1, states, tiles, scalars, columns, K: gl.constexpr, V: gl.constexpr,
    TRIPS: gl.constexpr, STAGES: gl.constexpr, row_layout: gl.constexpr, copied: gl.constexpr,
):  # fmt: skip
    """Add what states give to both halves' 64 channels from `columns` on; tiles `[STAGES, TRIPS 64, V]` are for theirs.

    The operands are rows of V numbers; scalars `[2 K, HALF]` are channels of x, being copied.
    """
    N: gl.constexpr = 64
    tile_row = gl.arange(0, TRIPS * N, gl.SliceLayout(1, copied))
    inner, trip = columns + tile_row % N, tile_row // N
    value = gl.arange(0, V, gl.SliceLayout(0, copied))
    for stage in gl.static_range(STAGES - 1):
        _fetch(tiles, states, inner, trip, value, stage, K, V, TRIPS, STAGES)
    for group in range(K // TRIPS):
        barrier()
        _fetch(tiles, states, inner, trip, value, group + STAGES - 1, K, V, TRIPS, STAGES)
        async_copy.wait_group(STAGES - 1)
        fence_async_shared()
        sum0, sum1, free0, free1 = add_scaled(
            sum0, sum1, free0, free1, operand0, operand1, tiles.index(group % STAGES), scalars, group * TRIPS,
            _start, 0, 1, TRIPS, K, row_layout,
        )  # fmt: skip
    return sum0, sum1, free0, free1


@gluon.jit(do_not_specialize=["T", "BLOCKS", "Y_HEADS", "X_HEADS", "HEADS", "STATES"])
def gradients_kernel(
    y, x_columns, states, dx, bounds, T, C, rows, Y_HEADS, X_HEADS, HEADS, STATES, BLOCKS,
    K: gl.constexpr, V: gl.constexpr, FIRST: gl.constexpr, PACKED: gl.constexpr,
    TRIPS: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """dx `[B T, HEADS, K]` float32, for y `[B T, Hy, V]`, x_columns `[slots, Hx, K, C]`, states as in `outputs_kernel`.

    A program takes 32 tokens a warp, and 64 channels of dx.
    """
    HALF: gl.constexpr = 16 * WARPS
    N: gl.constexpr = 64
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, N, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, sums)
    copied: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])

    program = gl.program_id(0)
    token = program % BLOCKS * 2 * HALF
    columns = program // BLOCKS % (K // N) * N
    head = program // (BLOCKS * (K // N)) % HEADS
    slot = (program // (BLOCKS * (K // N) * HEADS)).to(gl.int64)
    start, tokens, place = chunk_bounds(slot, T, C, bounds, PACKED)
    if token >= tokens or (place == 0 and not FIRST):
        return
    y += (start * Y_HEADS + head * Y_HEADS // HEADS) * V
    x_columns += (slot * X_HEADS + head * X_HEADS // HEADS) * K * C + token
    states += (slot * STATES + head * STATES // HEADS) * rows * (V + 1)
    dx += (start * HEADS + head) * K + columns

    tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TRIPS * N, V], gl.NVMMASharedLayout(128, 16, 2))
    scalars = gl.allocate_shared_memory(gl.bfloat16, [K, 2 * HALF], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    copy_scalars(scalars, x_columns, C, K, 2 * HALF, WARPS)
    scalars = scalars._reinterpret(gl.bfloat16, [2 * K, HALF], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    here = token + gl.arange(0, HALF, row_layout)
    operand0 = load_rows(y, here, tokens, Y_HEADS * V, 0, V, operand)
    operand1 = load_rows(y, here + HALF, tokens, Y_HEADS * V, 0, V, operand)
    sum0 = gl.zeros((HALF, N), gl.float32, sums)
    sum1 = gl.zeros((HALF, N), gl.float32, sums)
    free0 = gl.zeros((HALF, N), gl.float32, sums)
    free1 = gl.zeros((HALF, N), gl.float32, sums)
    sum0, sum1, _, _ = add_gradients(
        sum0, sum1, free0, free1, operand0, operand1, states, tiles, scalars, columns, K, V, TRIPS, STAGES, row_layout,
        copied,
    )  # fmt: skip
    channel = gl.arange(0, N, gl.SliceLayout(0, sums))
    gl.store(dx + here[:, None] * HEADS * K + channel[None, :], sum0, (here < tokens)[:, None])
    here += HALF
    gl.store(dx + here[:, None] * HEADS * K + channel[None, :], sum1, (here < tokens)[:, None])
