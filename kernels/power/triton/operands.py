"""Operands of products, rounded to nearest."""

import triton
import triton.language as tl

__all__ = ["as_operand", "divide"]


@triton.jit
def as_operand(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """x in DTYPE; to TensorFloat32's digits where products have those, since tensor cores cut off the others."""
    if PRECISION == "tf32" and DTYPE == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & -0x2000).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def divide(x, y, PRECISION: tl.constexpr):
    """x / y, rounded to nearest where products are exact; elsewhere off by up to two last digits, and sooner there."""
    if PRECISION == "ieee":
        return tl.div_rn(x, y)
    return x / y
