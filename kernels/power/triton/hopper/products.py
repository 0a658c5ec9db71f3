"""What both kernels share: `result += scalar * (operand @ tile)` over the tiles of a state.

The operand stays in registers, the tiles stream through shared memory, and the scalar, one channel of each token, meets
the product in float32: m(x) is never rounded. Tokens are in two halves: while one half's products are in flight, the
other's are scaled and added.

Products stay in flight only where the compiler (ptxas) sees that nothing else touches their accumulators: each starts
in what has been read of the one before, a wait after the addition keeps that from being moved behind the next start,
and none is in flight where a loop ends.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma_wait

from zoo.kernels.power.triton import chunks, monomials

__all__ = ["add_scaled", "barrier", "chunk_bounds", "copy_scalars", "load_rows", "load_symmetric"]

chunk_bounds = gluon.jit(chunks.chunk_bounds.fn)
pair_rows = gluon.jit(monomials.pair_rows.fn)
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # renamed after Triton 3.6


@gluon.jit
def load_rows(x, here, tokens, stride, FIRST: gl.constexpr, SIZE: gl.constexpr, operand: gl.constexpr):
    """Channels FIRST to FIRST + SIZE of some tokens' rows, as the left operand of a product."""
    row = gl.convert_layout(gl.minimum(here, tokens - 1), gl.SliceLayout(1, operand))
    channel = FIRST + gl.arange(0, SIZE, gl.SliceLayout(0, operand))
    return gl.load(x + row[:, None] * stride + channel[None, :])


@gluon.jit
def copy_scalars(scalars, columns, C, K: gl.constexpr, TOKENS: gl.constexpr, WARPS: gl.constexpr):
    """Start to copy `[K, TOKENS]` of columns `[K, C]` to shared memory."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [WARPS, 1], [1, 0])
    channel = gl.arange(0, K, gl.SliceLayout(1, layout))
    token = gl.arange(0, TOKENS, gl.SliceLayout(0, layout))
    async_copy.async_copy_global_to_shared(scalars, columns + channel[:, None] * C + token[None, :])


@gluon.jit
def add_scaled(
    sum0, sum1, free0, free1, operand0, operand1, tiles, scalars, first, start: gl.constexpr, SECTION: gl.constexpr,
    STARTED: gl.constexpr, TRIPS: gl.constexpr, K: gl.constexpr, rows: gl.constexpr,
):  # fmt: skip
    """TRIPS tiles, those of channels from `first` on, added to both halves' sums.

    `start(operand, tiles, trip, SECTION, free, ...)` starts STARTED products, in the accumulators free0 and free1.
    """
    product0 = start(operand0, tiles, 0, SECTION, free0, K, TRIPS)
    product1 = start(operand1, tiles, 0, SECTION, free1, K, TRIPS)
    for trip in gl.static_range(TRIPS):
        scalar0 = scalars.index(2 * (first + trip)).load(rows).to(gl.float32)
        scalar1 = scalars.index(2 * (first + trip) + 1).load(rows).to(gl.float32)
        free0 = warpgroup_mma_wait(STARTED, deps=[product0])
        sum0 += free0 * scalar0[:, None]
        if trip < TRIPS - 1:
            free0, sum0 = warpgroup_mma_wait(STARTED, deps=[free0, sum0])
            product0 = start(operand0, tiles, trip + 1, SECTION, free0, K, TRIPS)
            free1 = warpgroup_mma_wait(STARTED, deps=[product1])
            sum1 += free1 * scalar1[:, None]
            free1, sum1 = warpgroup_mma_wait(STARTED, deps=[free1, sum1])
            product1 = start(operand1, tiles, trip + 1, SECTION, free1, K, TRIPS)
        else:
            free1 = warpgroup_mma_wait(0, deps=[product1])
            sum1 += free1 * scalar1[:, None]
    return sum0, sum1, free0, free1


@gluon.jit
def load_symmetric(tile, z, K: gl.constexpr, layout: gl.constexpr):
    """Bring a state's normaliser to shared memory as a symmetric matrix `[K, K]`."""
    one, other = gl.arange(0, K, gl.SliceLayout(1, layout)), gl.arange(0, K, gl.SliceLayout(0, layout))
    row, _ = pair_rows(one[:, None], other[None, :], 16)
    tile.store(gl.load(z + row))
