# mypy: ignore-errors
"""What outputs and gradients from a state share: `result += scalar * (operand @ tile)` over the state's tiles.

The operand stays in registers, the tiles stream through shared memory, and the scalar, one channel of each token, meets
the product in float32: m(x) is never rounded.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma_wait

from zoo.kernels.power.triton import monomials, program
from zoo.kernels.power.triton.hopper.half import product
from zoo.kernels.power.triton.hopper.ring import commit, published
from zoo.kernels.power.triton.hopper.rows import copied_layout

__all__ = ["add_scaled", "copy_scalars", "load_symmetric", "locate", "times_normaliser"]

locate = gluon.jit(program.locate.fn)
pair_rows = gluon.jit(monomials.pair_rows.fn)


@gluon.jit
def copy_scalars(scalars, columns, C):
    """Start to copy columns `[K, C]` of both halves' tokens to shared memory `[2 K, HALF]`, a row for each half."""
    K: gl.constexpr = scalars.shape[0] // 2
    TOKENS: gl.constexpr = 2 * scalars.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    channel = gl.arange(0, K, gl.SliceLayout(1, layout))
    token = gl.arange(0, TOKENS, gl.SliceLayout(0, layout))
    # One copy for both halves, whose rows then take turns.
    whole = scalars._reinterpret(gl.bfloat16, [K, TOKENS], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    async_copy.async_copy_global_to_shared(whole, columns + channel[:, None] * C + token[None, :])


@gluon.jit
def add_scaled(results, accumulators, operands, products, tile, scalars, first):
    """The parts of one tile, those of channels from `first` on, added to both halves' results.

    `products.start(operand, tile, trip, accumulator)` starts STARTED products with the part of each of TRIPS channels.
    """
    rows: gl.constexpr = gl.SliceLayout(1, results[0].type.layout)
    STARTED: gl.constexpr = products.STARTED
    TRIPS: gl.constexpr = products.TRIPS
    result0, result1 = results
    accumulator0, accumulator1 = accumulators
    # From here on one half's products are in flight while the other's are scaled.
    product0 = products.start(operands[0], tile, 0, accumulator0)
    product1 = products.start(operands[1], tile, 0, accumulator1)
    for trip in gl.static_range(TRIPS):
        scalar0 = scalars.index(2 * (first + trip)).load(rows).to(gl.float32)
        scalar1 = scalars.index(2 * (first + trip) + 1).load(rows).to(gl.float32)
        accumulator0 = warpgroup_mma_wait(STARTED, deps=[product0])  # the other half's are in flight
        result0 += accumulator0 * scalar0[:, None]
        if trip < TRIPS - 1:
            # Waits with the sum among their dependencies keep it before the next start, which takes what it reads.
            accumulator0, result0 = warpgroup_mma_wait(STARTED, deps=[accumulator0, result0])
            product0 = products.start(operands[0], tile, trip + 1, accumulator0)
            accumulator1 = warpgroup_mma_wait(STARTED, deps=[product1])
            result1 += accumulator1 * scalar1[:, None]
            accumulator1, result1 = warpgroup_mma_wait(STARTED, deps=[accumulator1, result1])
            product1 = products.start(operands[1], tile, trip + 1, accumulator1)
        else:
            accumulator1 = warpgroup_mma_wait(0, deps=[product1])  # nothing is in flight where a loop ends
            result1 += accumulator1 * scalar1[:, None]
    return (result0, result1), (accumulator0, accumulator1)


@gluon.jit
def load_symmetric(z, K: gl.constexpr):
    """A state's normaliser as a symmetric matrix `[K, K]` in shared memory, once all that is being copied is there."""
    layout: gl.constexpr = copied_layout(gl.num_warps())
    tile = gl.allocate_shared_memory(gl.bfloat16, [K, K], gl.NVMMASharedLayout(128, 16, 2))
    one, other = gl.arange(0, K, gl.SliceLayout(1, layout)), gl.arange(0, K, gl.SliceLayout(0, layout))
    # Threads store it: not a copy, since both orders of a pair of channels read one number.
    row, _ = pair_rows(one[:, None], other[None, :], 16)
    tile.store(gl.load(z + row))
    commit()
    published(0)
    return tile


@gluon.jit
def times_normaliser(x, z, accumulator):
    """`x z` of each token, for x in shared memory and z symmetric."""
    return warpgroup_mma_wait(0, deps=[product(x, z, accumulator)])
