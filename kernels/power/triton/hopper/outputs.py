# mypy: ignore-errors
"""`S (c * m(x))`: what the state before a chunk gives to its queries, or its gradient to the values."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_init

from zoo.kernels.power.triton.hopper.aggregate import aggregate
from zoo.kernels.power.triton.hopper.products import add_scaled, copy_scalars, locate
from zoo.kernels.power.triton.hopper.ring import commit, next_tile
from zoo.kernels.power.triton.hopper.rows import SIZE, copied_layout, open_head, operand_layout, result_layout

__all__ = ["Products", "add_outputs", "load_blocks", "outputs_kernel"]


@aggregate
class Tiles:
    """A state's tiles, of TRIPS outer channels by K inner ones by 64 values, on their way through shared memory."""

    pool: gl.shared_memory_descriptor  # [STAGES, TRIPS K, 64]
    states: gl.tensor  # pointer
    offsets: gl.tensor  # of the first tile's numbers
    section: gl.tensor  # of each row: its inner block
    K: gl.constexpr
    V: gl.constexpr
    TRIPS: gl.constexpr

    @gluon.jit
    def fetch(self, group):
        """Start to copy the tile of the group's outer channels; those of earlier inner blocks are not needed."""
        if group < self.K // self.TRIPS:
            first = group * self.TRIPS  # outer channel
            source = self.states + self.offsets + first * (16 * self.V)
            stage = group % self.pool.shape[0]
            async_copy.async_copy_global_to_shared(self.pool.index(stage), source, mask=self.section >= first // 16)
        commit()


@aggregate
class Products:
    """Products of inner blocks from SECTION on, those that tiles of its channels have."""

    SECTION: gl.constexpr
    K: gl.constexpr
    TRIPS: gl.constexpr
    STARTED: gl.constexpr

    @gluon.jit
    def start(self, blocks, tile, TRIP: gl.constexpr, accumulator):
        """The block itself is at the tuple's end, later ones are doubled."""
        K: gl.constexpr = self.K
        # The first product overwrites the accumulator, the others add to it.
        product = warpgroup_mma_init(accumulator)
        product = warpgroup_mma(
            blocks[K // 16], tile.slice(TRIP * K + self.SECTION * 16, 16), product, use_acc=False, is_async=True
        )
        for block in gl.static_range(self.SECTION + 1, K // 16):
            product = warpgroup_mma(blocks[block], tile.slice(TRIP * K + block * 16, 16), product, is_async=True)
        return product


@gluon.jit
def load_blocks(x, here, operand: gl.constexpr):
    """Twice the channels of each inner block."""
    blocks = ()
    for block in gl.static_range(x.WIDTH // 16):
        blocks = blocks + (x.load(here, block * 16, 16, operand) * 2,)
    return blocks


@gluon.jit
def add_outputs(results, accumulators, x, here, states, pool, scalars, V: gl.constexpr):
    """Add what states of V values give to both halves' 64 values; tiles pass through `pool [STAGES, TRIPS K, 64]`.

    x are Rows of K channels, `here` both halves' tokens; scalars `[2 K, HALF]` are their channels, being copied.
    """
    K: gl.constexpr = x.WIDTH
    TRIPS: gl.constexpr = pool.shape[1] // K
    STAGES: gl.constexpr = pool.shape[0]
    copied: gl.constexpr = copied_layout(gl.num_warps())
    # A tile's rows: inner block b begins after those of the blocks before, which have 16 (b' + 1) channels each.
    row = gl.arange(0, TRIPS * K, gl.SliceLayout(1, copied))
    inner, trip = row % K, row // K
    section = inner // 16
    offset = 128 * section * (section + 1) + trip * 16 + inner % 16
    offsets = offset[:, None] * V + gl.arange(0, SIZE, gl.SliceLayout(0, copied))[None, :]
    tiles = Tiles(pool, states, offsets, section[:, None], K, V, TRIPS)
    for stage in gl.static_range(STAGES - 1):
        tiles.fetch(stage)

    operand: gl.constexpr = operand_layout(results[0].type.layout)
    blocks0, blocks1 = load_blocks(x, here[0], operand), load_blocks(x, here[1], operand)
    for block in gl.static_range(K // 16):
        # A block's own channels meet each other twice.
        # So their products are halved, while those of other pairs stand for both orders.
        operands = blocks0 + (blocks0[block] * 0.5,), blocks1 + (blocks1[block] * 0.5,)
        products = Products(block, K, TRIPS, K // 16 - block)
        for step in range(16 // TRIPS):
            group = block * (16 // TRIPS) + step
            tile = next_tile(tiles, group)
            results, accumulators = add_scaled(results, accumulators, operands, products, tile, scalars, group * TRIPS)
    return results, accumulators


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
    gl.static_assert(K % 16 == 0 and V % SIZE == 0 and 16 % TRIPS == 0)
    HALF: gl.constexpr = 16 * WARPS
    sums: gl.constexpr = result_layout(WARPS)
    row_layout: gl.constexpr = gl.SliceLayout(1, sums)

    part, column, head, slot, start, tokens, place = locate(BLOCKS, V // SIZE, HEADS, T, C, bounds, PACKED)
    token = part * 2 * HALF
    if token >= tokens or (place == 0 and not FIRST):
        return
    x_head = head * X_HEADS // HEADS
    vectors = open_head(x, start, tokens, X_HEADS, 1, x_head, K)
    outputs = open_head(y + column * SIZE, start, tokens, HEADS, 1, head, V)
    x_columns += (slot * X_HEADS + x_head) * K * C + token
    states += (slot * STATES + head * STATES // HEADS) * rows * (V + 1) + column * SIZE

    pool = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TRIPS * K, SIZE], gl.NVMMASharedLayout(128, 16, 2))
    scalars = gl.allocate_shared_memory(gl.bfloat16, [2 * K, HALF], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    copy_scalars(scalars, x_columns, C)
    here0 = token + gl.arange(0, HALF, row_layout)
    here1 = here0 + HALF
    # Both halves' results, and accumulators that have been read.
    zeros = gl.zeros((HALF, SIZE), gl.float32, sums)
    results, _ = add_outputs((zeros, zeros), (zeros, zeros), vectors, (here0, here1), states, pool, scalars, V)
    outputs.store(here0, results[0])
    outputs.store(here1, results[1])
