# mypy: ignore-errors
"""`sum_i x_i (S_i y)`, S as a symmetric tensor: half the gradient for x of `m(x) S y`."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from zoo.kernels.power.triton.hopper.aggregate import aggregate
from zoo.kernels.power.triton.hopper.half import product
from zoo.kernels.power.triton.hopper.products import add_scaled, copy_scalars, locate
from zoo.kernels.power.triton.hopper.ring import commit, next_tile
from zoo.kernels.power.triton.hopper.rows import SIZE, copied_layout, open_rows, operand_layout, result_layout

__all__ = ["add_gradients", "gradients_kernel"]


@aggregate
class Tiles:
    """A state's tiles, of TRIPS channels i by 64 channels of the result by V values, on their way to products."""

    pool: gl.shared_memory_descriptor  # [STAGES, TRIPS 64, V]
    states: gl.tensor  # pointer
    inner: gl.tensor  # of each row: the result's channel
    trip: gl.tensor  # of each row: which of the TRIPS channels i
    value: gl.tensor
    K: gl.constexpr
    V: gl.constexpr
    TRIPS: gl.constexpr
    STARTED: gl.constexpr

    @gluon.jit
    def fetch(self, group):
        """Start to copy the tile of the group's channels; rows that one of them lacks are the other channel's."""
        if group < self.K // self.TRIPS:
            inner = self.inner
            channel = group * self.TRIPS + self.trip
            # The state has a pair of channels once, its later block of 16 as the inner one.
            swapped = channel // 16 > inner // 16
            later = gl.maximum(channel // 16, inner // 16)
            # Inner block b begins after those of the blocks before, of 16 (b' + 1) outer channels by 16 each.
            row = 128 * later * (later + 1) + gl.where(swapped, inner, channel) * 16
            row += gl.where(swapped, channel, inner) % 16
            async_copy.async_copy_global_to_shared(
                self.pool.index(group % self.pool.shape[0]), self.states + row[:, None] * self.V + self.value[None, :]
            )
        commit()

    @gluon.jit
    def start(self, operand, tile, TRIP: gl.constexpr, accumulator):
        """All of a channel's part at once, transposed."""
        return product(operand, tile.slice(TRIP * SIZE, SIZE).permute((1, 0)), accumulator)


@gluon.jit
def add_gradients(results, accumulators, operands, states, pool, scalars, columns, K: gl.constexpr):
    """Add what states give to both halves' 64 channels from `columns` on; tiles pass `pool [STAGES, TRIPS 64, V]`.

    The operands are rows of V numbers; scalars `[2 K, HALF]` are channels of x, being copied.
    """
    STAGES: gl.constexpr = pool.shape[0]
    TRIPS: gl.constexpr = pool.shape[1] // SIZE
    V: gl.constexpr = pool.shape[2]
    copied: gl.constexpr = copied_layout(gl.num_warps())
    row = gl.arange(0, TRIPS * SIZE, gl.SliceLayout(1, copied))
    value = gl.arange(0, V, gl.SliceLayout(0, copied))
    tiles = Tiles(pool, states, columns + row % SIZE, row // SIZE, value, K=K, V=V, TRIPS=TRIPS, STARTED=1)
    for stage in gl.static_range(STAGES - 1):
        tiles.fetch(stage)
    for group in range(K // TRIPS):
        tile = next_tile(tiles, group)
        results, accumulators = add_scaled(results, accumulators, operands, tiles, tile, scalars, group * TRIPS)
    return results, accumulators


@gluon.jit(do_not_specialize=["T", "BLOCKS", "Y_HEADS", "X_HEADS", "HEADS", "STATES"])
def gradients_kernel(
    y, x_columns, states, dx, bounds, T, C, rows, Y_HEADS, X_HEADS, HEADS, STATES, BLOCKS,
    K: gl.constexpr, V: gl.constexpr, FIRST: gl.constexpr, PACKED: gl.constexpr,
    TRIPS: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """dx `[B T, HEADS, K]` float32, for y `[B T, Hy, V]`, x_columns `[slots, Hx, K, C]`, states as in `outputs_kernel`.

    A program takes 32 tokens a warp, and 64 channels of dx.
    """
    gl.static_assert(K % SIZE == 0 and V % 16 == 0 and K % TRIPS == 0)
    HALF: gl.constexpr = 16 * WARPS
    sums: gl.constexpr = result_layout(WARPS)
    operand: gl.constexpr = operand_layout(sums)

    part, column, head, slot, start, tokens, place = locate(BLOCKS, K // SIZE, HEADS, T, C, bounds, PACKED)
    token = part * 2 * HALF
    if token >= tokens or (place == 0 and not FIRST):
        return
    vectors = open_rows(y, start, tokens, Y_HEADS, 1, V).of(head * Y_HEADS // HEADS)
    gradients = open_rows(dx + column * SIZE, start, tokens, HEADS, 1, K).of(head)
    x_columns += (slot * X_HEADS + head * X_HEADS // HEADS) * K * C + token
    states += (slot * STATES + head * STATES // HEADS) * rows * (V + 1)

    pool = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TRIPS * SIZE, V], gl.NVMMASharedLayout(128, 16, 2))
    scalars = gl.allocate_shared_memory(gl.bfloat16, [2 * K, HALF], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    copy_scalars(scalars, x_columns, C)
    here0 = token + gl.arange(0, HALF, gl.SliceLayout(1, sums))
    here1 = here0 + HALF
    operands = vectors.load(here0, 0, V, operand), vectors.load(here1, 0, V, operand)
    # Both halves' results, and accumulators that have been read.
    zeros = gl.zeros((HALF, SIZE), gl.float32, sums)
    (result0, result1), _ = add_gradients(
        (zeros, zeros), (zeros, zeros), operands, states, pool, scalars, column * SIZE, K
    )
    gradients.store(here0, result0)
    gradients.store(here1, result1)
