"""The convolution as a torch.library op that the compiler leaves alone, on a GPU or under Triton's interpreter."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.cache_key import key_compiled_code_by_sources
from zoo.kernels.causal_convolution.call import Gradients, Inputs
from zoo.kernels.causal_convolution.plain import convolve_plainly
from zoo.kernels.registration import count_flops, flat, register_op
from zoo.kernels.transforms import differentiable_gradients, differentiates_again
from zoo.kernels.triton_support import TRITON

if TRITON:
    import triton

    from zoo.kernels.causal_convolution.walk import convolution_gradient_kernel, convolution_kernel
    from zoo.kernels.launch import launcher, unseen

__all__ = ["convolve"]

key_compiled_code_by_sources()

_BLOCK, _WARPS = 256, 2  # channels of a program: loads of eight bytes a thread in 16-bit dtypes
_LENGTH = 128  # tokens of a program: of fewer, those count that it reads of its neighbours'; of more, programs are few
_ROWS = 8  # tokens that are on their way at once


def _launch(kernel: Any, inputs: Inputs, *results: Tensor, incoming: tuple[Tensor, ...] = ()) -> None:
    """Launch over all channels and stretches of tokens."""
    x, weight, *rest = inputs
    B, T, channels = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    stretches, absent = _stretches(T), x.new_empty(0)
    with unseen(x.device):
        launcher(kernel)[(triton.cdiv(channels, _BLOCK) * B * stretches,)](
            *incoming, x, weight.contiguous(), *(absent if tensor is None else tensor.contiguous() for tensor in rest),
            *results, T, channels, x.stride(0), x.stride(1), stretches,
            W=weight.shape[1], BLOCK=_BLOCK, LENGTH=_LENGTH, ROWS=_ROWS,
            ALIGNED=math.gcd(x.stride(0), x.stride(1), 16), HAS_BIAS=rest[0] is not None, HAS_TAIL=rest[1] is not None,
            HAS_RESETS=rest[2] is not None, num_warps=_WARPS,
        )  # fmt: skip


def _stretches(T: int) -> int:
    return -(-T // _LENGTH)


def _convolve(inputs: Inputs) -> Tensor:
    y = _fake(inputs)
    _launch(convolution_kernel, inputs, y)
    return y


def _fake(inputs: Inputs) -> Tensor:
    return inputs.x.new_empty(inputs.x.shape)


convolve = register_op("causal_convolution")(flat(_convolve))
"""y `[B, T, C]`, with W from 2 to 8."""
torch.library.register_fake("zoo::causal_convolution", flat(_fake))


def _gradients(dy: Tensor, inputs: Inputs) -> Gradients:
    found, (x, weight, bias, *_) = _fake_gradients(dy, inputs), inputs
    B, T, channels = x.shape
    parts = x.new_empty(B * _stretches(T), weight.shape[1] + 1, channels, dtype=torch.float32)
    _launch(convolution_gradient_kernel, inputs, found.x, found.tail, parts, incoming=(dy,))
    *of_taps, of_bias = parts.sum(0)
    dweight = torch.stack(of_taps, 1).to(weight.dtype)
    return found._replace(weight=dweight, bias=found.bias if bias is None else of_bias.to(bias.dtype, copy=True))


def _fake_gradients(dy: Tensor, inputs: Inputs) -> Gradients:
    return Gradients._make(inputs.x.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs[:4])


_convolve_backward = register_op("causal_convolution_backward")(flat(_gradients))
torch.library.register_fake("zoo::causal_convolution_backward", flat(_fake_gradients))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    inputs = Inputs._make(ctx.saved_tensors)
    if differentiates_again():
        return *differentiable_gradients(partial(_plain, inputs.resets), [*inputs[:4]], (dy,)), None
    found = _convolve_backward(dy.contiguous(), *inputs)
    return *(None if x is None else dx for x, dx in zip(inputs[:4], found, strict=True)), None


def _plain(resets: Tensor | None, tensors: list[Tensor | None]) -> tuple[Tensor]:
    return (convolve_plainly(Inputs._make([*tensors, resets])),)


torch.library.register_autograd("zoo::causal_convolution", _differentiate, setup_context=_save)


# FLOP formulas get shapes in tensors' places.
@count_flops("causal_convolution")
def _(inputs: Inputs) -> int:
    (B, T, channels), (_, width) = inputs[:2]
    return 2 * B * T * channels * width


@count_flops("causal_convolution_backward")
def _(dy: Tensor, inputs: Inputs) -> int:
    (B, T, channels), (_, width) = inputs[:2]
    return 6 * B * T * channels * width  # the sums once more, and a product for each of two gradients
