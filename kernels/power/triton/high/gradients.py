"""What states give to gradients: `dx_i = sum_r c_r M_r(x) (S_(r, i) . y)`; and to gradients of the values of keys x."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.from_state import pass_on
from zoo.kernels.power.triton.monomials import outer_channels, outer_factors, weighted_monomials
from zoo.kernels.power.triton.program import locate

__all__ = ["high_gradients_kernel"]


@triton.jit(do_not_specialize=["T", "BLOCKS", "X_HEADS", "Y_HEADS", "HEADS", "STATES"])
def high_gradients_kernel(
    x_columns, y, delta, states, dx, outputs, bounds, channels, symmetric, coefficients, T, C, outers, rows,
    X_HEADS, Y_HEADS, HEADS, STATES, BLOCKS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, OUTERS: tl.constexpr, BLOCK: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, FIRST: tl.constexpr, HAS_NORMALISER: tl.constexpr,
    HAS_DELTA: tl.constexpr, WANTS_OUTPUTS: tl.constexpr,
):  # fmt: skip
    """dx `[B T, HEADS, K]` over P for y `[B T, Hy, V]` and, if WANTS_OUTPUTS, outputs `[B T, HEADS, V]`, float32.

    If HAS_NORMALISER, z is a value more, which y has 1 for or, if HAS_DELTA, -delta `[slots, HEADS, C]`. The rest as in
    `high_outputs_kernel`. All channels meet all outer monomials, since the state is a symmetric tensor.
    """
    part, _, head, slot, start, tokens, place = locate(BLOCKS, 1, HEADS, T, C, bounds, PACKED)
    token = part * BLOCK
    if token >= tokens or (place == 0 and not FIRST):
        return
    x_columns += (slot * X_HEADS + head * X_HEADS // HEADS) * K * C
    y += start * Y_HEADS * V + head * Y_HEADS // HEADS * V
    delta += (slot * HEADS + head) * C
    states += (slot * STATES + head * STATES // HEADS) * rows * (V + 1)
    dx += (start * HEADS + head) * K
    outputs += (start * HEADS + head) * V
    dtype = x_columns.dtype.element_ty

    here = token + tl.arange(0, BLOCK)
    channel, inners, values = tl.arange(0, K), tl.arange(0, INNER), tl.arange(0, V)
    blocks = tl.arange(0, K // INNER)[None, None, :]
    own = tl.load(y + tl.minimum(here, tokens - 1)[:, None] * Y_HEADS * V + values[None, :]).to(tl.float32)[:, None, :]
    result = tl.zeros((BLOCK, INNER, K // INNER), tl.float32)  # the order in which sums over values are found
    of_normaliser = tl.zeros((BLOCK, K), tl.float32)
    sums = tl.zeros((BLOCK, V), tl.float32)
    for first in range(0, outers, OUTERS):
        outer = first + tl.arange(0, OUTERS)
        existing = tl.minimum(outer, outers - 1)
        factors = outer_factors(x_columns, here[:, None], C, outer_channels(channels, existing[None, :], outers, P))
        coefficient = tl.load(coefficients + outer, outer < outers, 0)[None, :]  # zero where there is none
        monomials = weighted_monomials(factors, coefficient, dtype, PRECISION)
        # What later trips need is on its way while products are: channels of the next, rows of the two after this.
        table = symmetric + inners[None, :] * outers + existing[:, None]
        row, next_row = tl.load(table), tl.load(table + INNER * outers)
        own_channels = tl.load(x_columns + inners[None, :] * C + here[:, None])
        for inner in range(K // INNER):
            tl.assume(inner >= 0)  # so that nothing is chosen where `pass_on` seems to choose
            next_inner = tl.minimum(inner + 1, K // INNER - 1) * INNER
            next_channels = tl.load(x_columns + (next_inner + inners)[None, :] * C + here[:, None])
            later_row = tl.load(table + tl.minimum(inner + 2, K // INNER - 1) * INNER * outers)
            places = (row[:, :, None] * V + values[None, None, :]).reshape(OUTERS, INNER * V)
            # Which the compiler no longer sees, and without it copies two bytes at a time.
            places = tl.max_contiguous(tl.multiple_of(places, [1, 16]), [1, 16])
            tile = tl.load(states + places)
            product = tl.dot(monomials, tile, input_precision=PRECISION).reshape(BLOCK, INNER, V)
            result += tl.where(blocks == inner, tl.sum(product * own, 2, keep_dims=True), 0.0)
            if WANTS_OUTPUTS:
                sums += tl.sum(product * own_channels.to(tl.float32)[:, :, None], 1)
            own_channels = pass_on(next_channels, own_channels, inner)
            row, next_row = pass_on(next_row, row, inner), pass_on(later_row, next_row, inner)
        if HAS_NORMALISER:
            row = tl.load(symmetric + channel[None, :] * outers + existing[:, None])
            z = tl.load(states + rows * V + row)
            of_normaliser = tl.dot(monomials, z, of_normaliser, input_precision=PRECISION)
    result = tl.permute(result, 0, 2, 1).reshape(BLOCK, K)
    if HAS_DELTA:
        of_normaliser *= -tl.load(delta + here)[:, None]
    if HAS_NORMALISER:
        result += of_normaliser
    exist = (here < tokens)[:, None]
    tl.store(dx + here[:, None] * HEADS * K + channel[None, :], result, exist)
    if WANTS_OUTPUTS:
        tl.store(outputs + here[:, None] * HEADS * V + values[None, :], sums, exist)
