"""What the delta rule's Triton kernels take: GPUs, widths and dtypes; for p >= 2 what power attention's take."""

import torch

from zoo.kernels.delta.call import Inputs
from zoo.kernels.errors import InputError
from zoo.kernels.power import supported as power
from zoo.kernels.triton_support import DTYPES, INTERPRETED, TRITON, TRITON_REFUSAL

__all__ = ["check_triton", "supports_triton"]

WIDEST = 128


def supports_triton(inputs: Inputs, p: int, dtype: torch.dtype) -> bool:
    """Whether the Triton kernels take these inputs, as `dtype`."""
    if p > 1:
        return not inputs.gates_channels and power.supports_triton(inputs.q, inputs.v, dtype, p, offset=False)
    widest = max(inputs.k.shape[-1], inputs.v.shape[-1])
    return TRITON and inputs.q.is_cuda and dtype in DTYPES and widest <= WIDEST


def check_triton(inputs: Inputs, p: int, dtype: torch.dtype) -> None:
    """Say why the Triton kernels do not take these inputs.

    Raises:
        InputError: names the argument, what it was and what it must be.
    """
    if p > 1:
        power.check_triton(inputs.q, inputs.v, dtype, p, offset=False)
        return
    if not TRITON:
        raise InputError(f"impl: 'triton' {TRITON_REFUSAL}")
    if not inputs.q.is_cuda and not INTERPRETED:
        raise InputError(f"impl: 'triton' needs tensors on a GPU, q was on {inputs.q.device}")
    if dtype not in DTYPES:
        raise InputError(f"q: impl='triton' takes bfloat16, float16 or float32, was {dtype}")
    for name, x in (("k", inputs.k), ("v", inputs.v)):
        if x.shape[-1] > WIDEST:
            raise InputError(f"{name}: impl='triton' takes widths up to {WIDEST}, was {x.shape[-1]}")
