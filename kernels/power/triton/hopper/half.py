# mypy: ignore-errors
"""Half of a program's tokens: while one half's products are in flight, the other's are scaled and added."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    warpgroup_mma,
    warpgroup_mma_accumulator,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from zoo.kernels.power.triton.hopper.aggregate import Value, aggregate
from zoo.kernels.power.triton.hopper.rows import operand_layout

__all__ = ["Half", "as_operand", "begin", "decay_halves", "end", "pair_factors", "product"]


@aggregate
class Half:
    """Half of a program's tokens, 16 a warp, and what has been added up for them."""

    here: gl.tensor  # [HALF], from the chunk's start on
    x: gl.shared_memory_descriptor  # [HALF, K], what scores are taken of
    own: Value  # gradients only: [HALF, V] in registers, of queries their outputs' gradients, of keys their values
    delta: Value  # gradients only: [HALF], zero of keys
    gates: Value  # [HALF], cumulative, where pairs need them
    result: gl.tensor | warpgroup_mma_accumulator  # [HALF, 64] float32
    row_sums: gl.tensor  # [HALF] float32

    @gluon.jit
    def with_sums(self, result, row_sums):
        """The same tokens with other sums."""
        return Half(self.here, self.x, self.own, self.delta, self.gates, result, row_sums)

    @gluon.jit
    def times(self, factor):
        """The same with all sums times a number."""
        return self.with_sums(self.result * factor, self.row_sums * factor)

    @gluon.jit
    def decayed(self, gates, decay):
        """The same with cumulative log gates, and sums times a decay for each token."""
        result, row_sums = self.result * decay[:, None], self.row_sums * decay
        return Half(self.here, self.x, self.own, self.delta, gates, result, row_sums)


@gluon.jit
def as_operand(x):
    """A result rounded to bfloat16, as a product's left operand."""
    # A thread's numbers stay its own: a result and an operand have the same places.
    layout: gl.constexpr = operand_layout(x.type.layout)
    return gl.convert_layout(x.to(gl.bfloat16), layout)


@gluon.jit
def product(operand, tile, accumulator):
    """Start a product, which takes the registers of an accumulator that has been read."""
    return warpgroup_mma(operand, tile, warpgroup_mma_init(accumulator), use_acc=False, is_async=True)


@gluon.jit
def begin(half0, half1):
    """Both halves before a loop that leaves products in flight."""
    result0, result1 = warpgroup_mma_init(half0.result), warpgroup_mma_init(half1.result)
    return half0.with_sums(result0, half0.row_sums), half1.with_sums(result1, half1.row_sums)


@gluon.jit
def end(half0, half1):
    """Both halves after such a loop, with nothing in flight."""
    result0, result1 = warpgroup_mma_wait(0, deps=[half0.result, half1.result])
    return half0.with_sums(result0, half0.row_sums), half1.with_sums(result1, half1.row_sums)


@gluon.jit
def decay_halves(half0, half1, side):
    """Both halves between the loops: what has been added, from the nearest token on to each; and those decays."""
    gates0, gates1 = gl.load(side.gates + half0.here), gl.load(side.gates + half1.here)
    decay0, decay1 = side.to_nearest(gates0), side.to_nearest(gates1)
    return half0.decayed(gates0, decay0), half1.decayed(gates1, decay1), decay0, decay1


@gluon.jit
def pair_factors(half0, half1, side, there, factor, OWN: gl.constexpr):
    """The factors of both halves' pairs with tokens there, from those tokens' own factors."""
    # Pairs with own tokens have each its decay, where they are causal; a full block has one factor for each token.
    if OWN:
        factor0, factor1 = side.causal(half0.here, there, factor), side.causal(half1.here, there, factor)
        if side.GATED:
            gates = gl.load(side.gates + there)
            factor0 *= side.pair_decay(half0.gates, gates)
            factor1 *= side.pair_decay(half1.gates, gates)
        return factor0, factor1
    else:
        factor = side.beyond(there, factor)[None, :]
        return factor, factor
