"""Feed-forward layers: the part of a block that mixes channels."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.channel_mix import ChannelMix
from zoo.blocks.layer import Layer, LayerContext
from zoo.blocks.linear import ResidualLinear
from zoo.blocks.window import Token, Window

__all__ = ["FeedForwardName", "GeluFeedForward", "SwiGLUFeedForward", "hidden_width", "make_feed_forward"]

FeedForwardName = Literal["gelu", "swiglu", "rwkv7", "none"]


class GeluFeedForward(Layer):
    """`W_2 gelu(W_1 x)` with the tanh approximation, as in GPT-2."""

    halo = 0

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden, bias)
        self.contract = ResidualLinear(hidden, width, bias)

    def forward(self, x: Tensor, state: tuple[()], *, window: Window | Token) -> tuple[Tensor, tuple[()]]:
        return self.contract(F.gelu(self.expand(x), approximate="tanh")), ()


class SwiGLUFeedForward(Layer):
    """`W_3 (silu(W_1 x) * W_2 x)`, as in Llama (Shazeer, arXiv 2002.05202)."""

    halo = 0

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias)
        self.expand = nn.Linear(width, hidden, bias)
        self.contract = ResidualLinear(hidden, width, bias)

    def forward(self, x: Tensor, state: tuple[()], *, window: Window | Token) -> tuple[Tensor, tuple[()]]:
        return self.contract(F.silu(self.gate(x)) * self.expand(x)), ()


def hidden_width(name: FeedForwardName, width: int) -> int:
    """Return the hidden width that a layer takes where none is set; 0 for `none`.

    It is 4 x width, and for swiglu, whose three matrices share the parameters of two, 8/3 x width rounded up to a
    multiple of 64.
    """
    if name == "none":
        return 0
    return -(-8 * width // (3 * 64)) * 64 if name == "swiglu" else 4 * width


def make_feed_forward(name: FeedForwardName, hidden: int, context: LayerContext) -> Layer | None:
    """Return the layer called `name` of this hidden width; None for `none`."""
    if name == "none":
        return None
    if name == "rwkv7":
        return ChannelMix(context, hidden)
    if name == "gelu":
        return GeluFeedForward(context.width, hidden, context.bias)
    return SwiGLUFeedForward(context.width, hidden, context.bias)
