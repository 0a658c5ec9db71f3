"""What a chunk adds to the gradient of the state before it, whatever the gradient of the state after it is."""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.prepare import solve_transposed
from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["incoming_kernel"]


@triton.jit(do_not_specialize=["T"])
def incoming_kernel(
    do, inverses, scores, receives, additions, dheld, T, HEADS,
    C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """additions `r'^T do [slots, H, K, K]`, and dheld `E = (1 - A_b)^-T B_b^T do [B T, H, K]`, from do of that shape.

    E is the gradient of what kappa meets, but for what the state after the chunk gives to it:
    `dS_start = decay dS_end + r'^T do + kappa'^T (E + R dS_end)`. A program takes BLOCK values of one chunk and head.
    """
    slot, head, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, C, do, False)
    place = slot * HEADS + head
    dtype: tl.constexpr = additions.dtype.element_ty
    at, channels, values = tl.arange(0, C), tl.arange(0, K), block * BLOCK + tl.arange(0, BLOCK)
    square = at[:, None] * C + at[None, :]
    of_token = (start * HEADS + head) * K + at[:, None] * HEADS * K + values[None, :]
    dy = tl.load(do + of_token, (at < tokens)[:, None], 0).to(dtype)
    receiver = tl.load(receives + place * C * K + at[:, None] * K + channels[None, :])
    addition = tl.dot(tl.trans(receiver), dy, input_precision=PRECISION)
    tl.store(additions + place * K * K + channels[:, None] * K + values[None, :], addition.to(dtype))
    rb = tl.load(scores + (place * 3 + 1) * C * C + square)
    found = tl.dot(tl.trans(rb), dy, input_precision=PRECISION)
    found = solve_transposed(tl.load(inverses + place * C * C + square), found, PRECISION)
    tl.store(dheld + of_token, as_operand(found, dtype, PRECISION), (at < tokens)[:, None])
