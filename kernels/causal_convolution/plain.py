"""The convolution as sums of shifted inputs, which the compiler fuses with what surrounds them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.causal_convolution.call import Inputs
from zoo.kernels.precision import concatenate

__all__ = ["convolve_plainly", "number_documents"]


def convolve_plainly(inputs: Inputs) -> Tensor:
    """`silu(b + sum_j w_j x_{t - W + 1 + j})` `[B, T, C]`, in the dtype of x."""
    x, weight, bias, tail, resets = inputs
    B, T, channels = x.shape
    width = weight.shape[1]
    before = width - 1
    tail = x.new_zeros(B, before, channels) if tail is None else tail.to(x.dtype)
    seen = concatenate((tail, x), 1)
    document = None if resets is None else number_documents(resets, before)
    y = torch.zeros_like(x) if bias is None else bias.to(x.dtype).expand_as(x)
    weight = weight.to(x.dtype)
    for j in range(width):
        shifted = seen[:, j : j + T]
        if document is not None:
            same = document[:, j : j + T] == document[:, before:]
            shifted = torch.where(same[..., None], shifted, 0)
        y = y + weight[:, j] * shifted
    return F.silu(y)


def number_documents(resets: Tensor, before: int) -> Tensor:
    """The document of each token `[B, before + T]`, and 0 for those before. One of another document counts as zero.

    Args:
        resets: bool `[B, T]`, of tokens that begin one.
        before: tokens of a tail.
    """
    document = resets.long().cumsum(1)
    return torch.cat((document.new_zeros(len(resets), before), document), 1)
