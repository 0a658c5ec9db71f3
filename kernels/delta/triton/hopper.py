# mypy: ignore-errors
"""Reading and writing a power state on Hopper GPUs, at p = 2 in bfloat16: what `read_kernel` and `write_kernel` do.

The state is tiled with inner blocks of 16 channels, 2,560 rows for 64 channels in place of 4,096, and is not weighted.
A stretch is too short to fill a GPU with the blocks of tokens that power attention's kernels take. So several programs
read shares of the rows for the same tokens, and a program writes two tiles. They are launched such that a kernel begins
while the one before it ends, and wait for that one after they have read what it does not write.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_init, warpgroup_mma_wait

from zoo.kernels.delta.triton import errors
from zoo.kernels.power.triton.hopper.aggregate import aggregate
from zoo.kernels.power.triton.hopper.outputs import Products, load_blocks
from zoo.kernels.power.triton.hopper.ring import barrier, commit, drained, next_tile, published, replaceable
from zoo.kernels.power.triton.hopper.rows import SIZE, copied_layout, open_head, operand_layout, result_layout
from zoo.kernels.power.triton.hopper.sums import section_and_block

__all__ = ["read_tiles_kernel", "share_bounds", "write_tiles_kernel"]

find_stretch = gluon.jit(errors.find_stretch.fn)
decay_from_start = gluon.jit(errors.decay_from_start.fn)
wait_for_launch = gluon.jit(errors.wait_for_launch.fn)


def share_bounds(K: int, trips: int, shares: int) -> tuple[int, ...]:
    """Where each share of a state begins, in groups of `trips` outer channels, and the end; as even as can be."""
    costs = [K // 16 - group * trips // 16 for group in range(K // trips)]  # inner blocks that meet a group
    done = [sum(costs[:group]) for group in range(len(costs) + 1)]
    return tuple(min(range(len(done)), key=lambda group: abs(done[group] - done[-1] * share / shares))
                 for share in range(shares + 1))  # fmt: skip


@aggregate
class Tiles:
    """A share of a state's tiles, of TRIPS outer channels by K inner ones by 64 values, as in power's `outputs`."""

    pool: gl.shared_memory_descriptor  # [STAGES, TRIPS K, 64]
    states: gl.tensor  # pointer
    offsets: gl.tensor  # of the first tile's numbers
    section: gl.tensor  # of each row: its inner block
    end: gl.tensor  # the first group of the next share
    V: gl.constexpr
    TRIPS: gl.constexpr

    @gluon.jit
    def fetch(self, group):
        """Start to copy the tile of the group's outer channels; those of earlier inner blocks are not needed."""
        if group < self.end:
            first = group * self.TRIPS  # outer channel
            source = self.states + self.offsets + first * (16 * self.V)
            stage = group % self.pool.shape[0]
            async_copy.async_copy_global_to_shared(self.pool.index(stage), source, mask=self.section >= first // 16)
        commit()


@gluon.jit
def _add_scaled(result, accumulators, operands, products, tile, scalars, first):
    """Add the parts of a tile's outer channels, from `first` on: while one's are in flight, another's are scaled."""
    rows: gl.constexpr = gl.SliceLayout(1, result.type.layout)
    STARTED: gl.constexpr = products.STARTED
    TRIPS: gl.constexpr = products.TRIPS
    accumulator0, accumulator1 = accumulators
    product0 = products.start(operands, tile, 0, accumulator0)
    product1 = products.start(operands, tile, 1, accumulator1)
    for trip in gl.static_range(0, TRIPS, 2):
        scalar0 = scalars.index(first + trip).load(rows).to(gl.float32)
        scalar1 = scalars.index(first + trip + 1).load(rows).to(gl.float32)
        accumulator0 = warpgroup_mma_wait(STARTED, deps=[product0])  # the other one's are in flight
        result += accumulator0 * scalar0[:, None]
        if trip < TRIPS - 2:
            # Waits with the sum among their dependencies keep it before the next start, which takes what it reads.
            accumulator0, result = warpgroup_mma_wait(STARTED, deps=[accumulator0, result])
            product0 = products.start(operands, tile, trip + 2, accumulator0)
            accumulator1 = warpgroup_mma_wait(STARTED, deps=[product1])
            result += accumulator1 * scalar1[:, None]
            accumulator1, result = warpgroup_mma_wait(STARTED, deps=[accumulator1, result])
            product1 = products.start(operands, tile, trip + 3, accumulator1)
        else:
            accumulator1 = warpgroup_mma_wait(0, deps=[product1])  # nothing is in flight where a loop ends
            result += accumulator1 * scalar1[:, None]
    return result, (accumulator0, accumulator1)


@gluon.jit(do_not_specialize=["T", "index", "KEYS", "HEADS", "BLOCKS"])
def read_tiles_kernel(
    k, k_columns, v, gates, gates_low, states, reads, unread, arrived, bounds, sequences, T, L, index, rows, KEYS,
    HEADS, BLOCKS,
    K: gl.constexpr, V: gl.constexpr, GATED: gl.constexpr, PACKED: gl.constexpr, SHARES: gl.constexpr,
    BEGINS: gl.constexpr, TRIPS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """As `read_kernel`, of states that are not weighted.

    A program takes 64 tokens, 64 values and a share of the rows, from group BEGINS[share] on; those of a block are
    counted in `arrived [slots, Hv, BLOCKS V / 64]`.
    """
    gl.static_assert(K % 16 == 0 and V % SIZE == 0 and 16 % TRIPS == 0 and TRIPS % 2 == 0 and gl.num_warps() == 4)
    sums: gl.constexpr = result_layout(4)
    program, head, row = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    share = program % SHARES
    column = program // SHARES % (V // SIZE)
    block = program // (SHARES * (V // SIZE))
    slot, start, tokens = find_stretch(row, index, T, L, bounds, sequences, PACKED)
    token = block * SIZE
    if token >= tokens:
        wait_for_launch()
        return
    place, state = slot * HEADS + head, row.to(gl.int64) * HEADS + head
    vectors = open_head(k, start, tokens, KEYS, 1, head * KEYS // HEADS, K)
    k_columns += (slot * KEYS + head * KEYS // HEADS) * K * L + token
    states += state * rows * V + column * SIZE
    first, end = 0, BEGINS[1]
    for other in gl.static_range(1, SHARES):
        if share == other:
            first = BEGINS[other]
            end = BEGINS[other + 1]

    copied: gl.constexpr = copied_layout(4)
    pool = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TRIPS * K, SIZE], gl.NVMMASharedLayout(128, 16, 2))
    scalars = gl.allocate_shared_memory(gl.bfloat16, [K, SIZE], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    channel = gl.arange(0, K, gl.SliceLayout(1, copied))[:, None]
    at = gl.arange(0, SIZE, gl.SliceLayout(0, copied))[None, :]
    whole = scalars._reinterpret(gl.bfloat16, [K, SIZE], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    async_copy.async_copy_global_to_shared(whole, k_columns + channel * L + at)
    tile_row = gl.arange(0, TRIPS * K, gl.SliceLayout(1, copied))
    section = tile_row % K // 16
    offset = 128 * section * (section + 1) + tile_row // K * 16 + tile_row % 16
    tiles = Tiles(pool, states, offset[:, None] * V + at, section[:, None], end, V, TRIPS)
    here = token + gl.arange(0, SIZE, gl.SliceLayout(1, sums))
    blocks = load_blocks(vectors, here, operand_layout(sums))
    wait_for_launch()
    for stage in gl.static_range(STAGES - 1):
        tiles.fetch(first + stage)
    zeros = gl.zeros((SIZE, SIZE), gl.float32, sums)
    result, accumulators = zeros, (zeros, zeros)
    for inner in gl.static_range(K // 16):
        operands = blocks + (blocks[inner] * 0.5,)  # a block's own channels meet each other twice
        products = Products(inner, K, TRIPS, K // 16 - inner)
        low = gl.maximum(first, inner * (16 // TRIPS))
        for group in range(low, gl.minimum(end, (inner + 1) * (16 // TRIPS))):
            tile = next_tile(tiles, group)
            result, accumulators = _add_scaled(result, accumulators, operands, products, tile, scalars, group * TRIPS)
    if GATED:
        result *= decay_from_start(gates, gates_low, place * L + here, here < tokens, False)[:, None]

    drained()
    wide: gl.constexpr = gl.BlockedLayout([1, 4], [2, 16], [4, 1], [1, 0])
    result = gl.convert_layout(result, wide)
    there = token + gl.arange(0, SIZE, gl.SliceLayout(1, wide))[:, None]
    value = column * SIZE + gl.arange(0, SIZE, gl.SliceLayout(0, wide))[None, :]
    exists, places = there < tokens, there * V + value
    asked = gl.load(v + ((start + there) * HEADS + head) * V + value, exists, 0).to(gl.float32)
    if SHARES > 1:
        gl.store(reads + (state * SHARES + share) * L * V + places, result, exists)
        barrier()  # what all threads have stored comes before the count
        count = gl.atomic_add(arrived + (place * BLOCKS + block) * (V // SIZE) + column, 1, sem="acq_rel")
        if count < SHARES - 1:
            return
        total = gl.zeros((SIZE, SIZE), gl.float32, wide)
        for other in gl.static_range(SHARES):
            found = gl.load(reads + (state * SHARES + other) * L * V + places, exists & (share != other), 0)
            total += gl.where(share == other, result, found)
        result = total
    gl.store(unread + state * L * V + places, asked - result, exists)


@aggregate
class Source:
    """Blocks of 64 tokens of a stretch, on their way through shared memory."""

    inner: gl.shared_memory_descriptor  # [STAGES, 16, 64]
    outer: gl.shared_memory_descriptor  # [STAGES, OUTER, 64]
    y: gl.shared_memory_descriptor  # [STAGES, 64, 64]
    inner_source: gl.tensor  # pointers to the first block's
    outer_source: gl.tensor
    written: gl.tensor  # pointer
    tokens: gl.tensor
    steps: gl.tensor
    stride: gl.tensor  # from a token's values to the next one's

    @gluon.jit
    def fetch(self, step):
        """Start to copy a step's inner channels, outer channels with decay, and what was written."""
        if step < self.steps:
            stage = step % self.y.shape[0]
            token = step * SIZE
            async_copy.async_copy_global_to_shared(self.inner.index(stage), self.inner_source + token)
            async_copy.async_copy_global_to_shared(self.outer.index(stage), self.outer_source + token)
            # Beyond the last token decayed columns are zero.
            layout: gl.constexpr = copied_layout(gl.num_warps())
            there = gl.minimum(token + gl.arange(0, SIZE, gl.SliceLayout(1, layout)), self.tokens - 1)[:, None]
            value = gl.arange(0, SIZE, gl.SliceLayout(0, layout))[None, :]
            async_copy.async_copy_global_to_shared(self.y.index(stage), self.written + there * self.stride + value)
        commit()


@gluon.jit(do_not_specialize=["T", "index", "KEYS", "HEADS"])
def write_tiles_kernel(
    k_columns, decayed, gates, gates_low, written, carried, states, bounds, sequences, T, L, index, rows, KEYS, HEADS,
    K: gl.constexpr, V: gl.constexpr, HAS_INITIAL: gl.constexpr, GATED: gl.constexpr, PACKED: gl.constexpr,
    TILES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """As `write_kernel`, with states that are not weighted. A tile is 4 outer channels, one for each warp, by 16 inner
    ones by 64 values; a program takes TILES of them, neighbours of one inner block.
    """
    WARPS: gl.constexpr = 4
    OUTER: gl.constexpr = 4 * TILES
    PARTS: gl.constexpr = 16 // OUTER  # of a pair of an outer and an inner block
    gl.static_assert(K % 16 == 0 and V % SIZE == 0 and gl.num_warps() == WARPS and 16 % OUTER == 0)
    totals: gl.constexpr = result_layout(WARPS)
    operand: gl.constexpr = gl.DotOperandLayout(0, totals, 2)
    # The operand's layout, `[outer, inner, token]`: one outer channel a warp.
    expanded: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 1], [0, 8, 0], [0, 0, 8], [0, 0, 16], [0, 0, 32]],
        lane_bases=[[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        warp_bases=[[1, 0, 0], [2, 0, 0]], block_bases=[], shape=[4, 16, 64],
    )  # fmt: skip
    copied: gl.constexpr = copied_layout(WARPS)
    wide: gl.constexpr = gl.BlockedLayout([1, 4], [2, 16], [WARPS, 1], [1, 0])

    program, head, row = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    part = program % PARTS
    column = program // PARTS % (V // SIZE) * SIZE
    section, block = section_and_block(program // (PARTS * (V // SIZE)), K)
    slot, start, tokens = find_stretch(row, index, T, L, bounds, sequences, PACKED)
    if PACKED:  # nobody reads the state after the last stretch
        tokens = gl.where(slot + 1 < gl.load(sequences + row * 2 + 1), tokens, 0)
    if tokens == 0:
        wait_for_launch()
        return
    place, state = slot * HEADS + head, row.to(gl.int64) * HEADS + head
    k_columns += (slot * KEYS + head * KEYS // HEADS) * K * L
    decayed += place * K * L
    written += (start * HEADS + head) * V + column
    first = section * 16 + part * OUTER  # outer channel
    base = (128 * block * (block + 1) + first * 16).to(gl.int64)
    tile_row = gl.arange(0, 64, gl.SliceLayout(1, wide))[:, None]
    value = column + gl.arange(0, SIZE, gl.SliceLayout(0, wide))[None, :]
    tile = (state * rows + base + tile_row) * V + value

    plain: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    inner_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 16, SIZE], plain)
    fours: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 4, [1, 0])  # the same for each 4 rows
    outer_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, OUTER, SIZE], fours)
    y_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, SIZE, SIZE], gl.NVMMASharedLayout(128, 16, 2))
    outer_fours = outer_tiles._reinterpret(gl.bfloat16, [STAGES * TILES, 4, SIZE], fours)
    at = gl.arange(0, SIZE, gl.SliceLayout(0, copied))[None, :]
    inner_source = k_columns + (block * 16 + gl.arange(0, 16, gl.SliceLayout(1, copied))[:, None]) * L + at
    outer_source = decayed + (first + gl.arange(0, OUTER, gl.SliceLayout(1, copied))[:, None]) * L + at
    steps = gl.maximum(gl.cdiv(tokens, SIZE), 1)
    source = Source(
        inner_tiles, outer_tiles, y_tiles, inner_source, outer_source, written, tokens=tokens, steps=steps,
        stride=HEADS * V,
    )  # fmt: skip
    before, left = (), 1.0
    if GATED:
        left = decay_from_start(gates, gates_low, place * L + L - 1, tokens > 0, False)
    for number in gl.static_range(TILES):
        exists = (tile_row >= 0) & (HAS_INITIAL or index > 0)
        before = before + (gl.load(carried + tile + number * (64 * V), exists, 0),)
    wait_for_launch()
    for step in gl.static_range(STAGES - 1):
        source.fetch(step)
    results = ()
    for number in gl.static_range(TILES):
        result = gl.zeros((64, SIZE), gl.float32, totals)
        results = results + (result if number < TILES - 1 else warpgroup_mma_init(result),)
    for step in range(steps):
        published(STAGES - 2)
        # Only now may the registers be written that the last product, in flight until here, takes its monomials from.
        last = warpgroup_mma_wait(0, deps=[results[TILES - 1]])
        stage = step % STAGES
        inner = inner_tiles.index(stage).load(gl.SliceLayout(0, expanded))
        done, running = (), ()
        for number in gl.static_range(TILES):
            outer = outer_fours.index(stage * TILES + number).load(gl.SliceLayout(1, expanded))
            monomials = (inner[None, :, :] * outer[:, None, :]).reshape([64, SIZE])
            monomials = gl.convert_layout(monomials, operand, assert_trivial=True)
            result = last if number == TILES - 1 else results[number]
            product = warpgroup_mma(monomials, y_tiles.index(stage), result, is_async=True)
            if number > 0:
                done = done + (warpgroup_mma_wait(1, deps=[running]),)
            running = product
        results = done + (running,)
        replaceable()  # the stage of the step before
        source.fetch(step + STAGES - 1)
    results = warpgroup_mma_wait(0, deps=results)
    drained()
    for number in gl.static_range(TILES):
        result = gl.convert_layout(results[number], wide) + left * before[number]
        gl.store(carried + tile + number * (64 * V), result)
        gl.store(states + tile + number * (64 * V), result.to(states.dtype.element_ty))
