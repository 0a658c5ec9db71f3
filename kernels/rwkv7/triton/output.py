"""The output, and what is removed: what the state before a chunk and the chunk itself give to r and to kappa."""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.prepare import solve
from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["output_kernel"]


@triton.jit(do_not_specialize=["T"])
def output_kernel(
    v, inverses, scores, removes, receives, states, o, removed, T, HEADS,
    C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, WANTS_REMOVED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o and, if wanted, removed u, both `[B T, H, K]`, from states before chunks; the rest as in `prepare_kernel`.

    A program takes BLOCK values of one chunk and head.
    """
    slot, head, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, C, v, False)
    place = slot * HEADS + head
    dtype: tl.constexpr = states.dtype.element_ty
    at, channels, values = tl.arange(0, C), tl.arange(0, K), block * BLOCK + tl.arange(0, BLOCK)
    here = (at < tokens)[:, None]
    square = place * C * C + at[:, None] * C + at[None, :]
    of_key = place * C * K + at[:, None] * K + channels[None, :]
    of_token = (start * HEADS + head) * K + at[:, None] * HEADS * K + values[None, :]
    scores += 2 * place * C * C + square  # of three
    S = tl.load(states + place * K * K + channels[:, None] * K + values[None, :])
    value = tl.load(v + of_token, here, 0).to(dtype)
    held = tl.dot(tl.load(scores), value, input_precision=PRECISION)
    held = tl.dot(tl.load(removes + of_key), S, held, input_precision=PRECISION)
    u = as_operand(solve(tl.load(inverses + square), held, PRECISION), dtype, PRECISION)
    if WANTS_REMOVED:
        tl.store(removed + of_token, u, here)
    y = tl.dot(tl.load(receives + of_key), S, input_precision=PRECISION)
    y = tl.dot(tl.load(scores + 2 * C * C), value, y, input_precision=PRECISION)
    y = tl.dot(tl.load(scores + C * C), u, y, input_precision=PRECISION)
    tl.store(o + of_token, y.to(o.dtype.element_ty), here)
