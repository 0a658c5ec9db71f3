"""Feed-forward layers: the part of a block that mixes channels."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.channel_mix import ChannelMix
from zoo.blocks.layer import Layer, LayerContext
from zoo.blocks.linear import ResidualLinear
from zoo.blocks.window import Token, Window

__all__ = ["FeedForward", "FeedForwardName", "GatedFeedForward", "hidden_width", "make_feed_forward"]

FeedForwardName = Literal["gelu", "erf-gelu", "squared-relu", "swiglu", "geglu", "rwkv7", "none"]

Activation = Callable[[Tensor], Tensor]


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


_TANH_GELU: Activation = partial(F.gelu, approximate="tanh")
_PLAIN: Mapping[str, Activation] = {"gelu": _TANH_GELU, "erf-gelu": F.gelu, "squared-relu": _squared_relu}
_GATED: Mapping[str, Activation] = {"swiglu": F.silu, "geglu": _TANH_GELU}


class FeedForward(Layer):
    """`W_2 f(W_1 x)`: with GELU by its tanh approximation, as in GPT-2, or exact, as in GPT-NeoX, or with the square of
    ReLU (So et al., "Primer", arXiv 2109.08668)."""

    halo = 0

    def __init__(self, width: int, hidden: int, bias: bool, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.expand = nn.Linear(width, hidden, bias)
        self.contract = ResidualLinear(hidden, width, bias)

    def forward(self, x: Tensor, state: tuple[()], *, window: Window | Token) -> tuple[Tensor, tuple[()]]:
        return self.contract(self.activation(self.expand(x))), ()


class GatedFeedForward(Layer):
    """`W_3 (f(W_1 x) * W_2 x)`: with SiLU, as in Llama, or GELU, as in Gemma (Shazeer, arXiv 2002.05202)."""

    halo = 0

    def __init__(self, width: int, hidden: int, bias: bool, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.gate = nn.Linear(width, hidden, bias)
        self.expand = nn.Linear(width, hidden, bias)
        self.contract = ResidualLinear(hidden, width, bias)

    def forward(self, x: Tensor, state: tuple[()], *, window: Window | Token) -> tuple[Tensor, tuple[()]]:
        return self.contract(self.activation(self.gate(x)) * self.expand(x)), ()


def hidden_width(name: FeedForwardName, width: int) -> int:
    """Return the hidden width that a layer takes where none is set; 0 for `none`.

    It is 4 x width, and for swiglu and geglu, whose three matrices share the parameters of two, 8/3 x width rounded up
    to a multiple of 64.
    """
    if name == "none":
        return 0
    return -(-8 * width // (3 * 64)) * 64 if name in _GATED else 4 * width


def make_feed_forward(name: FeedForwardName, hidden: int, context: LayerContext) -> Layer | None:
    """Return the layer called `name` of this hidden width; None for `none`."""
    if name == "none":
        return None
    if name == "rwkv7":
        return ChannelMix(context, hidden)
    if name in _GATED:
        return GatedFeedForward(context.width, hidden, context.bias, _GATED[name])
    return FeedForward(context.width, hidden, context.bias, _PLAIN[name])
