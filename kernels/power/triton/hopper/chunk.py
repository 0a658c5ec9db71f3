"""What tokens of one chunk give to each other: the part of the fused kernels that needs no state.

Tokens `here` of a program meet blocks of 64 `there`, earlier ones or, REVERSE, later ones, which stream through shared
memory in tiles of 64 tokens by 64 channels. A full block lies beyond all of the program's tokens; its decay to the
program's nearest token is a factor of its own, so that pairs need no exponential. The blocks of the program's own
tokens come last, and take the decay of each pair.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from zoo.kernels.power.triton.hopper.products import barrier

__all__ = [
    "SIZE",
    "between",
    "beyond",
    "decay",
    "fetch_block",
    "fetch_rows",
    "load_values",
    "next_block",
    "pair_decay",
    "place_of",
    "times_normaliser",
    "toward",
]

SIZE = gl.constexpr(64)  # tokens of a block, and channels of a tile


@gluon.jit
def decay(later, earlier):
    """What is left, from summed log gates; 1 where `later` is in fact earlier, which callers mask."""
    return gl.exp2(gl.minimum(later - earlier, 0.0))


@gluon.jit
def fetch_rows(tile, x, row, stride, copied: gl.constexpr):
    """Start to copy 64 channels of rows of x to a tile."""
    channel = gl.arange(0, SIZE, gl.SliceLayout(0, copied))
    async_copy.async_copy_global_to_shared(tile, x + row[:, None] * stride + channel[None, :])


@gluon.jit
def place_of(step, full, PARTNERS, token, BLOCK: gl.constexpr, REVERSE: gl.constexpr):
    """The partner and the first token of a step: `full` blocks of all partners, then the program's own of each."""
    OWN: gl.constexpr = BLOCK // SIZE
    first = token + BLOCK if REVERSE else 0
    own = step - full
    if PARTNERS == 1:  # a constant, if it is 1: without divisions
        return 0, gl.where(own < 0, first + step * SIZE, token + own * SIZE)
    else:
        blocks = full // PARTNERS
        partner = gl.where(own < 0, step // blocks, own // OWN)
        return partner, gl.where(own < 0, first + step % blocks * SIZE, token + own % OWN * SIZE)


@gluon.jit
def fetch_block(
    pool, stage, other, values, partner, first, tokens, OTHER_HEADS, OTHER_SHARED, VALUE_HEADS, VALUE_SHARED,
    K: gl.constexpr, V: gl.constexpr, copied: gl.constexpr,
):  # fmt: skip
    """Start to copy a block's tile of `other [tokens, OTHER_HEADS, K]` and one of `values [tokens, VALUE_HEADS, V]`.

    OTHER_SHARED and VALUE_SHARED partners have one of those heads in common.
    """
    row = gl.minimum(first + gl.arange(0, SIZE, gl.SliceLayout(1, copied)), tokens - 1)
    fetch_rows(pool.index(stage * 2), other + partner // OTHER_SHARED * K, row, OTHER_HEADS * K, copied)
    fetch_rows(pool.index(stage * 2 + 1), values + partner // VALUE_SHARED * V, row, VALUE_HEADS * V, copied)
    async_copy.commit_group()


@gluon.jit
def next_block(
    pool, step, steps, full, other, values, partners, token, tokens, OTHER_HEADS, OTHER_SHARED, VALUE_HEADS,
    VALUE_SHARED, PARTNERS, K: gl.constexpr, V: gl.constexpr, BLOCK: gl.constexpr, RING: gl.constexpr,
    REVERSE: gl.constexpr, copied: gl.constexpr,
):  # fmt: skip
    """Wait for this step's block, and start to copy the one two steps ahead."""
    async_copy.wait_group(1)
    fence_async_shared()
    barrier()
    # All warps are done with the products of two steps ago, whose block this one replaces.
    gl.static_assert(RING >= 4)
    partner, first = place_of(gl.minimum(step + 2, steps - 1), full, PARTNERS, token, BLOCK, REVERSE)
    fetch_block(
        pool, (step + 2) % RING, other, values, partners + partner, first, tokens, OTHER_HEADS, OTHER_SHARED,
        VALUE_HEADS, VALUE_SHARED, K, V, copied,
    )  # fmt: skip


@gluon.jit
def load_values(x, here, tokens, stride, K: gl.constexpr, sums: gl.constexpr):
    """K channels of some tokens' rows in float32, laid out as sums are."""
    channel = gl.arange(0, K, gl.SliceLayout(0, sums))
    return gl.load(x + gl.minimum(here, tokens - 1)[:, None] * stride + channel[None, :]).to(gl.float32)


@gluon.jit
def times_normaliser(x_tile, z, free):
    """`x z` of each token, z symmetric; `free` is the accumulator that it takes."""
    product = warpgroup_mma(x_tile, z, warpgroup_mma_init(free), use_acc=False, is_async=True)
    return warpgroup_mma_wait(0, deps=[product])


@gluon.jit
def toward(nearest, gates, REVERSE: gl.constexpr):
    """The decay between a program's tokens, by their summed gates, and the one nearest to full blocks."""
    return decay(nearest, gates) if REVERSE else decay(gates, nearest)


@gluon.jit
def beyond(nearest, gates, REVERSE: gl.constexpr):
    """The decay between that nearest token and those of full blocks."""
    return decay(gates, nearest) if REVERSE else decay(nearest, gates)


@gluon.jit
def between(here, there, factor, REVERSE: gl.constexpr):
    """The factor of tokens `there` in each pair with one `here`: zero where not causal."""
    causal = here[:, None] <= there[None, :] if REVERSE else here[:, None] >= there[None, :]
    return gl.where(causal, factor[None, :], 0.0)


@gluon.jit
def pair_decay(gates_here, gates_there, REVERSE: gl.constexpr):
    """The decay between each pair of tokens, by their summed gates."""
    here, there = gates_here[:, None], gates_there[None, :]
    return decay(there, here) if REVERSE else decay(here, there)
