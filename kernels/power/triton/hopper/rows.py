# mypy: ignore-errors
"""Vectors of a chunk's tokens in global memory, and the layouts that they have in registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from zoo.kernels.power.triton.hopper.aggregate import Value, aggregate

__all__ = ["SIZE", "Rows", "copied_layout", "open_rows", "operand_layout", "result_layout"]

SIZE = gl.constexpr(64)  # tokens of a block, and channels or values of a tile


@gluon.constexpr_function
def copied_layout(warps):
    """Of copies: 16 bytes a thread, 128 bytes of each row."""
    return gl.BlockedLayout([1, 8], [4, 8], [warps, 1], [1, 0])


@gluon.constexpr_function
def result_layout(warps):
    """Of a product's result: 16 rows a warp by 64 columns."""
    return gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, 64, 16])


@gluon.constexpr_function
def operand_layout(result):
    """Of a product's left operand in registers."""
    return gl.DotOperandLayout(0, result, 2)


@aggregate
class Rows:
    """A chunk's vectors `[tokens, heads, WIDTH]`. Those of one partner, or all: then SHARED partners share a head."""

    first: gl.tensor  # pointer
    tokens: gl.tensor
    heads: Value
    SHARED: Value
    WIDTH: gl.constexpr

    @gluon.jit
    def of(self, partner):
        """One partner's."""
        return Rows(self.first + partner // self.SHARED * self.WIDTH, self.tokens, self.heads, 1, self.WIDTH)

    @gluon.jit
    def copy(self, tile, token):
        """Start to copy 64 channels of as many tokens, from `token` on, as a tile has rows.

        Beyond the chunk's end the last token's, since nothing else may be there to read.
        """
        layout: gl.constexpr = copied_layout(gl.num_warps())
        channel = gl.arange(0, SIZE, gl.SliceLayout(0, layout))
        # The last token's again beyond the end: factors are zero there.
        row = gl.minimum(token + gl.arange(0, tile.shape[0], gl.SliceLayout(1, layout)), self.tokens - 1)
        sources = self.first + row[:, None] * (self.heads * self.WIDTH) + channel[None, :]
        async_copy.async_copy_global_to_shared(tile, sources)

    @gluon.jit
    def load(self, here, FIRST: gl.constexpr, COUNT: gl.constexpr, layout: gl.constexpr):
        """COUNT channels from FIRST on of the tokens `here`, or the last one, in registers."""
        row = gl.convert_layout(gl.minimum(here, self.tokens - 1), gl.SliceLayout(1, layout))
        channel = FIRST + gl.arange(0, COUNT, gl.SliceLayout(0, layout))
        return gl.load(self.first + row[:, None] * (self.heads * self.WIDTH) + channel[None, :])

    @gluon.jit
    def store(self, here, result):
        """Store the vectors of those of the tokens `here` that exist."""
        channel = gl.arange(0, result.shape[1], gl.SliceLayout(0, result.type.layout))
        places = here[:, None] * self.heads * self.WIDTH + channel[None, :]
        gl.store(self.first + places, result.to(self.first.dtype.element_ty), (here < self.tokens)[:, None])


@gluon.jit
def open_rows(x, start, tokens, PARTNERS, SHARED, WIDTH: gl.constexpr):
    """The vectors x `[B T, heads, WIDTH]` of a chunk that starts at row `start`, for so many partners."""
    heads = PARTNERS // SHARED
    return Rows(x + start * heads * WIDTH, tokens, heads, SHARED, WIDTH)
