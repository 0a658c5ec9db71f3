"""A short convolution along time with SiLU behind it, every channel by itself."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.checks import check_part
from zoo.blocks.in_float32 import in_float32
from zoo.blocks.linear import own_part
from zoo.blocks.window import Token, Window
from zoo.kernels.causal_convolution import causal_convolution, number_documents
from zoo.kernels.precision import concatenate
from zoo.kernels.sequence import tail as share_tail

__all__ = ["CausalConvolution", "NoConvolution"]


class CausalConvolution(nn.Module):
    """`y_t = silu(b + sum_j w_j x_{t - W + 1 + j})` per channel, over the last W tokens: no token sees one after it.

    What came before the first token is zero, or a tail `[B, W - 1, channels]`: the inputs that the next tokens still
    see; in a later share of a sequence it is inputs of the process that has the tokens before.

    Args:
        channels: of the input.
        width: W, tokens that an output sees.
        bias: whether there is a b.
    """

    def __init__(self, channels: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.initialize(std=0.02)

    @in_float32
    def initialize(self, std: float) -> None:
        """Draw as torch's own convolutions do, from U(-1 / sqrt(W), 1 / sqrt(W)), whatever `std` other weights have."""
        bound = 1 / math.sqrt(self.width)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, tail: Tensor | None, window: Window | Token) -> tuple[Tensor, Tensor]:
        """Return the outputs `[B, T, channels]` of x, and the tail after it.

        Padding does not enter the tail, and a token that is reset sees nothing before it. Of one token a row, x
        `[B, channels]` in the window `Token`, the tail is written in place.
        """
        if isinstance(window, Token):
            assert tail is not None
            return self._step(x, tail), tail
        given, before = tail, self.width - 1
        tail = x.new_zeros(x.shape[0], before, x.shape[2]) if tail is None else tail.to(x.dtype)
        document = None if window.resets is None else number_documents(window.resets, before)
        if window.group is not None and before > 0:
            earlier = share_tail(self._tail_after(tail, x, document, None), before, window.group)
            given = tail = torch.where(window.group.rank == 0, tail, earlier)
        bias = None if self.bias is None else own_part(self.bias)
        y = causal_convolution(x, own_part(self.weight), bias, tail=given, resets=window.resets)
        return y, window.at_the_end(self._tail_after(tail, x, document, window.lengths))

    def check_tail(self, name: str, tail: Tensor, x: Tensor) -> None:
        """Check the tail in a state, whose part `name` it is, for the rows of `x [B, ...]`.

        Raises:
            InputError: it is of another width, number of tokens or rows, or on another device.
        """
        check_part(name, tail, (x.shape[0], self.width - 1, len(own_part(self.weight))), None, x.device)

    def keep_share(self, count: int) -> None:
        """Compute one of `count` equal shares of the channels, which are those of the weights."""

    def flops(self, tokens: int) -> int:
        """FLOPs (a multiply-add is 2) of so many tokens."""
        return 2 * self.weight.numel() * tokens

    def _step(self, x: Tensor, tail: Tensor) -> Tensor:
        """The output `[B, channels]` of one token x `[B, channels]`; the tail is written in place."""
        seen = concatenate((tail.to(x.dtype), x[:, None]), 1)
        tail.copy_(seen[:, 1:])
        y = torch.einsum("btc,ct->bc", seen, own_part(self.weight).to(x.dtype))
        return F.silu(y if self.bias is None else own_part(self.bias).to(x.dtype) + y)

    def _tail_after(self, tail: Tensor, x: Tensor, document: Tensor | None, lengths: Tensor | None) -> Tensor:
        """The last W - 1 real inputs of tail and x, zero where they are of an earlier document than the last of them.

        document: of each row of both, `[B, W - 1 + T]`.
        """
        before, seen = self.width - 1, concatenate((tail, x), 1)  # whole: the compiler must not ask how long x is
        if lengths is None:
            last = seen[:, seen.shape[1] - before :]
            documents = None if document is None else document[:, document.shape[1] - before :]
        else:
            at = lengths[:, None] + torch.arange(before, device=x.device)
            last = seen.gather(1, at[..., None].expand(-1, -1, x.shape[2]))
            documents = None if document is None else document.gather(1, at)
        if documents is None:
            return last
        return torch.where((documents == documents[:, -1:])[..., None], last, 0)


class NoConvolution(nn.Module):
    """Every token by itself, where a layer has no convolution: what `CausalConvolution` takes and gives, unchanged.

    The tail is empty, `[B, 0, channels]`.
    """

    width = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, tail: Tensor | None, window: Window | Token) -> tuple[Tensor, Tensor]:
        if isinstance(window, Token):
            assert tail is not None
            return x, tail
        return x, x[:, :0]

    def check_tail(self, name: str, tail: Tensor, x: Tensor) -> None:
        check_part(name, tail, (x.shape[0], 0, self.channels), None, x.device)

    def keep_share(self, count: int) -> None:
        self.channels //= count

    def flops(self, tokens: int) -> int:
        return 0
