"""What RWKV-7's Triton kernels take: GPUs, widths and dtypes; and how many tokens' decays they may divide by."""

import math

from torch import Tensor

from zoo.kernels.errors import InputError
from zoo.kernels.triton_support import DTYPES, INTERPRETED, TRITON, TRITON_REFUSAL

__all__ = ["check_triton", "resolve_base", "supports_triton"]

WIDEST = 128
LARGEST_FACTOR = 32  # in bits: the square of it, of pairs that are masked, is still a number


def supports_triton(r: Tensor) -> bool:
    """Whether the Triton kernels take tokens as r `[B, T, H, N]` is."""
    return TRITON and r.is_cuda and r.dtype in DTYPES and r.shape[-1] <= WIDEST


def check_triton(r: Tensor) -> None:
    """Say why the Triton kernels do not take tokens as r is.

    Raises:
        InputError: names the argument, what it was and what it must be.
    """
    if not TRITON:
        raise InputError(f"impl: 'triton' {TRITON_REFUSAL}")
    if not r.is_cuda and not INTERPRETED:
        raise InputError(f"impl: 'triton' needs tensors on a GPU, r was on {r.device}")
    if r.dtype not in DTYPES:
        raise InputError(f"r: impl='triton' takes bfloat16, float16 or float32, was {r.dtype}")
    if r.shape[-1] > WIDEST:
        raise InputError(f"r: impl='triton' takes heads of up to {WIDEST} channels, was {r.shape[-1]}")


def resolve_base(log_w_floor: float) -> int:
    """How many tokens, a power of two, decay little enough for the kernels to divide by half of their decays."""
    bits = -log_w_floor * math.log2(math.e)
    base = 128
    while base > 1 and base / 2 * bits > LARGEST_FACTOR:
        base //= 2
    return base
