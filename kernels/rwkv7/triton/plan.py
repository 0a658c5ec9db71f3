"""What one call's launches follow from: the delta rule's plan, with these kernels' sizes. No tensors, no launches."""

import torch
from torch import Tensor

from zoo.kernels.delta.triton.plan import Plan, Sizes, fill_width, product_precision
from zoo.kernels.power.heads import Heads
from zoo.kernels.rwkv7.call import Options
from zoo.kernels.wanted import Wanted

__all__ = ["SIZES", "first_level", "make_plan", "using"]

SIZES = Sizes(prepare_warps=2, output_warps=2, value_block=64, key_warps=4)
WIDE_SIZES = SIZES._replace(prepare_warps=4, compose_registers=255)  # over 64 channels
# Three products for each one, of operands twice as large.
FLOAT_SIZES = Sizes(
    prepare_warps=4, state_block=16, compose_registers=255, output_block=32, output_warps=4, incoming_warps=4,
    value_block=32, key_block=16, key_values=32, key_warps=4,
)  # fmt: skip
_wanted: Wanted[Sizes] = Wanted()
using = _wanted.using


def make_plan(r: Tensor, options: Options) -> Plan:
    """The plan of both passes of a call, r being `[B, T, H, N]`."""
    B, T, H, N = r.shape
    narrow = SIZES if N <= 64 else WIDE_SIZES
    sizes = _wanted.sizes or (narrow if r.dtype == torch.bfloat16 else FLOAT_SIZES)
    wanted = options.chunk_size
    C = min(sizes.chunk, 1 << max(4, wanted.bit_length() - 1)) if wanted else sizes.chunk
    return Plan(
        heads=Heads(H, H, H),
        batch=B,
        tokens=T,
        K=fill_width(int(N)),
        V=fill_width(int(N)),
        scale=1.0,
        gated=True,
        channels=True,
        corrects=True,
        packed=False,
        dtype=torch.bfloat16 if r.dtype == torch.bfloat16 else torch.float32,
        precision=product_precision(r.dtype),
        exact=r.dtype == torch.float32,
        sizes=sizes,
        C=C,
        slots=B * -(-T // C),
        sequences=B,
    )


def first_level(plan: Plan, options: Options) -> int:
    """The logarithm of how many tokens have one cut (see `pairs.py`)."""
    return min(plan.C, options.base).bit_length() - 1
