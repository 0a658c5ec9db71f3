"""Decay between tokens of a chunk, from gates summed since its start.

A block of tokens meets those outside it through one of its own tokens: the decay on either side of that token is a
factor of its own, at most 1, so that the many pairs of tokens need no exponential.

An exponent of -73 in one float32 number is off by 4e-6, and so is the decay relative to itself. Exact gates have what
rounding left of them as a second number, which is so small that 1 + x is its exponential.
"""

import triton
import triton.language as tl

__all__ = ["decay", "small_power"]

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def small_power(x):
    """2^x of an x that rounding left of an exponent."""
    return 1 + LN_2 * x


@triton.jit
def decay(gates, gates_low, later, earlier, EXACT_GATES: tl.constexpr):
    """What is left of `earlier` tokens at `later` ones; 1 where they are later, which callers mask."""
    gate, earlier_gate = tl.load(gates + later), tl.load(gates + earlier)
    exponent = gate - earlier_gate
    left = tl.exp2(tl.minimum(exponent, 0.0))
    if EXACT_GATES:
        # What rounding left of the difference: the later gate is the larger of the two, by size.
        rest = (gate - exponent) - earlier_gate
        left *= small_power(rest + (tl.load(gates_low + later) - tl.load(gates_low + earlier)))
    return left
