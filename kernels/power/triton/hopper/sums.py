# mypy: ignore-errors
"""What one chunk adds to the state: `sum_t decay_t m(x_t) y_t^T`."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from zoo.kernels.power.triton.hopper.aggregate import Value, aggregate
from zoo.kernels.power.triton.hopper.products import locate
from zoo.kernels.power.triton.hopper.ring import commit, drained, published, replaceable
from zoo.kernels.power.triton.hopper.rows import SIZE, Rows, copied_layout, result_layout

__all__ = ["section_and_block", "sums_kernel"]


@gluon.jit
def section_and_block(pair, K: gl.constexpr):
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
def _channels(first, second, layout: gl.constexpr):
    """The channels of two blocks of 16."""
    row = gl.arange(0, 32, gl.SliceLayout(1, layout))
    return (gl.where(row < 16, first, second) * 16 + row % 16)[:, None]


@aggregate
class Source:
    """Blocks of 64 tokens of all REPEATS heads of a state, one after the other, on their way through shared memory."""

    inner: gl.shared_memory_descriptor  # [STAGES, 32, 64]
    outer: gl.shared_memory_descriptor  # [STAGES, 32, 64]
    y: gl.shared_memory_descriptor  # [STAGES, 64, 64]
    x_columns: gl.tensor  # pointer
    x_decayed: gl.tensor  # pointer
    rows: Rows  # of y
    inner_channel: gl.tensor  # of each row
    outer_channel: gl.tensor
    state: gl.tensor
    blocks: gl.tensor  # of a head
    steps: gl.tensor  # blocks of all heads
    C: gl.tensor
    X_SHARED: Value
    REPEATS: Value
    K: gl.constexpr

    @gluon.jit
    def fetch(self, step):
        """Start to copy a step's inner channels, outer channels with decay, and values."""
        STAGES: gl.constexpr = self.y.shape[0]
        if step < self.steps + STAGES // 3 - 1:  # zeros to the end of a trip
            exists = step < self.steps
            stage = step % STAGES
            head = self.state
            token = step * SIZE
            if self.REPEATS > 1:
                head = self.state * self.REPEATS + gl.minimum(step, self.steps - 1) // self.blocks
                token = step % self.blocks * SIZE
            layout: gl.constexpr = copied_layout(gl.num_warps())
            at = token + gl.arange(0, SIZE, gl.SliceLayout(0, layout))[None, :]
            inner = self.x_columns + head // self.X_SHARED * self.K * self.C + self.inner_channel * self.C + at
            async_copy.async_copy_global_to_shared(self.inner.index(stage), inner, mask=exists)
            outer = self.x_decayed + head * self.K * self.C + self.outer_channel * self.C + at
            async_copy.async_copy_global_to_shared(self.outer.index(stage), outer, mask=exists)
            # Beyond the chunk's end decayed columns are zero.
            rows = self.rows
            there = gl.minimum(token + gl.arange(0, SIZE, gl.SliceLayout(1, layout)), rows.tokens - 1)[:, None]
            value = gl.arange(0, SIZE, gl.SliceLayout(0, layout))[None, :]
            y = rows.first + (there * rows.heads + head // rows.SHARED) * rows.WIDTH + value
            async_copy.async_copy_global_to_shared(self.y.index(stage), y, mask=exists)
        commit()


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
    PAIRS: gl.constexpr = K // 16 * (K // 16 + 1) // 2
    gl.static_assert(K % 16 == 0 and PAIRS % 2 == 0 and V % SIZE == 0 and gl.num_warps() == WARPS)
    totals: gl.constexpr = result_layout(WARPS)
    operand: gl.constexpr = gl.DotOperandLayout(0, totals, 2)
    # The operand's layout, `[outer, inner, token]`: one outer channel a warp.
    expanded: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 1], [0, 8, 0], [0, 0, 8], [0, 0, 16], [0, 0, 32]],
        lane_bases=[[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        warp_bases=[[1, 0, 0], [2, 0, 0], [4, 0, 0]], block_bases=[], shape=[8, 16, 64],
    )  # fmt: skip
    copied: gl.constexpr = copied_layout(WARPS)

    program, column, state, slot, start, tokens, _ = locate(PAIRS // 2, V // SIZE, STATES, T, C, bounds, PACKED)
    if tokens <= 0:
        return
    first, columns = program * 2, column * SIZE
    x_columns += slot * X_HEADS * K * C
    x_decayed += slot * STATES * REPEATS * K * C
    y += start * Y_HEADS * V + columns
    sums += (slot * STATES + state) * rows * (V + 1) + columns
    section0, block0 = section_and_block(first, K)
    section1, block1 = section_and_block(first + 1, K)
    inner_channel, outer_channel = _channels(block0, block1, copied), _channels(section0, section1, copied)

    plain: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    inner_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 32, SIZE], plain)
    outer_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 32, SIZE], plain)
    y_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, SIZE, SIZE], gl.NVMMASharedLayout(128, 16, 2))
    # The same memory by tiles: 16 inner channels each, 8 outer ones.
    inner_blocks = inner_tiles._reinterpret(gl.bfloat16, [STAGES * 2, 16, SIZE], plain)
    outer_eights = outer_tiles._reinterpret(gl.bfloat16, [STAGES * TILES, 8, SIZE], plain)

    blocks = gl.cdiv(tokens, SIZE)
    # The compiler must know that the loop runs, or it waits for each product.
    steps = gl.maximum(blocks * REPEATS, 1)
    source = Source(
        inner_tiles, outer_tiles, y_tiles, x_columns, x_decayed, Rows(y, tokens, Y_HEADS, Y_SHARED, V),
        inner_channel=inner_channel, outer_channel=outer_channel, state=state, blocks=blocks, steps=steps, C=C,
        X_SHARED=X_SHARED, REPEATS=REPEATS, K=K,
    )  # fmt: skip
    for step in gl.static_range(2 * PER_TRIP):
        source.fetch(step)
    # All tiles' results; the last one is marked as in flight, as it is where a trip ends.
    results = ()
    for tile in gl.static_range(TILES):
        result = gl.zeros((128, SIZE), gl.float32, totals)
        results = results + (result if tile < TILES - 1 else warpgroup_mma_init(result),)
    for trip in range(gl.cdiv(steps, PER_TRIP)):
        published(PER_TRIP)
        for part in gl.static_range(PER_TRIP):
            stage = (trip * PER_TRIP + part) % STAGES
            done = ()
            running = ()
            for tile in gl.static_range(TILES):
                if tile % 2 == 0:
                    inner = inner_blocks.index(stage * 2 + tile // 2).load(gl.SliceLayout(0, expanded))
                outer = outer_eights.index(stage * TILES + tile).load(gl.SliceLayout(1, expanded))
                monomials = (inner[None, :, :] * outer[:, None, :]).reshape([128, SIZE])
                monomials = gl.convert_layout(monomials, operand, assert_trivial=True)
                product = warpgroup_mma(monomials, y_tiles.index(stage), results[tile], is_async=True)
                if tile > 0:  # to have the registers of its monomials again
                    done = done + (warpgroup_mma_wait(1, deps=[running]),)
                running = product
            results = done + (running,)
        replaceable()  # the stages of the trip before: this one's last product may still be in flight
        for part in gl.static_range(PER_TRIP):
            source.fetch((trip + 2) * PER_TRIP + part)
    results = warpgroup_mma_wait(0, deps=results)
    # The pipeline copies zeros past its end, and the changes of layout below take the shared memory that they go to.
    drained()
    row = gl.arange(0, 128, gl.SliceLayout(1, copied))[:, None]
    value = gl.arange(0, SIZE, gl.SliceLayout(0, copied))[None, :]
    for tile in gl.static_range(TILES):
        section, block = (section0, block0) if tile < 2 else (section1, block1)
        base = 128 * block * (block + 1) + (section * 16 + tile % 2 * 8) * 16
        result = gl.convert_layout(results[tile].to(sums.dtype.element_ty), copied)
        gl.store(sums + (base + row) * V + value, result)
