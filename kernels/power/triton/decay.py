"""Decay between tokens of a chunk, from gates summed since its start.

A block of tokens meets those outside it through one of its own tokens: the decay on either side of that token is a
factor of its own, at most 1, so that the many pairs of tokens need no exponential.
"""

import triton
import triton.language as tl

__all__ = ["decay"]


@triton.jit
def decay(gates, gates_low, later, earlier, EXACT_GATES: tl.constexpr):
    """What is left of `earlier` tokens at `later` ones; 1 where they are later, which callers mask."""
    exponent = tl.load(gates + later) - tl.load(gates + earlier)
    if EXACT_GATES:
        exponent += tl.load(gates_low + later) - tl.load(gates_low + earlier)
    return tl.exp2(tl.minimum(exponent, 0.0))
