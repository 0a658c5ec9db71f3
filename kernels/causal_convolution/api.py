"""The convolution for layers: in PyTorch, whose operations the compiler fuses, or on a GPU as an op of two kernels."""

from torch import Tensor

from zoo.kernels.causal_convolution.call import Inputs
from zoo.kernels.causal_convolution.op import convolve
from zoo.kernels.causal_convolution.plain import convolve_plainly
from zoo.kernels.transforms import transformed
from zoo.kernels.triton_support import DTYPES, INTERPRETED, TRITON

__all__ = ["causal_convolution"]

_WIDEST = 8  # what the kernels see of the past is in registers


def causal_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, tail: Tensor | None = None, resets: Tensor | None = None
) -> Tensor:
    """Return `silu(b + sum_j w_j x_{t - W + 1 + j})` `[B, T, C]` in the dtype of x; no token sees one after it.

    On a GPU with Triton it is an op that reads its input once and writes its output once, and whose backward pass makes
    all gradients in one more reading of input and gradient; it computes in float32. Elsewhere, for widths over 8, in
    float64, and under the transforms of torch.func it is PyTorch's own operations.

    Args:
        x: `[B, T, C]`.
        weight: `[C, W]`, any floating dtype.
        bias: b `[C]`; None: 0.
        tail: inputs before the first token `[B, W - 1, C]`; None: zeros.
        resets: bool `[B, T]`: a marked token and those after it see nothing before it; None: none is marked.
    """
    inputs = Inputs(x, weight, bias, tail, resets)
    return convolve(*inputs) if _takes(inputs) else convolve_plainly(inputs)


def _takes(inputs: Inputs) -> bool:
    """Whether the kernels take it."""
    x, weight = inputs[:2]
    right = all(tensor is None or tensor.dtype in DTYPES for tensor in inputs[:4]) and 2 <= weight.shape[1] <= _WIDEST
    return TRITON and (x.is_cuda or INTERPRETED) and right and x.numel() > 0 and not transformed()
