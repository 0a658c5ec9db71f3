"""RWKV-7's feed-forward layer, which sees the token before."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.checks import check_part, check_state
from zoo.blocks.in_float32 import in_float32
from zoo.blocks.layer import LayerContext, Room
from zoo.blocks.linear import ResidualLinear
from zoo.blocks.mixer import Mixer
from zoo.blocks.token_shift import lerp_start, shift
from zoo.blocks.window import Token, Window

__all__ = ["ChannelMix", "ChannelMixState"]


class ChannelMixState(NamedTuple):
    """`last [B, M]`, the last input."""

    last: Tensor


class ChannelMix(Mixer):
    """`W_v relu(W_k (x_t + (x_{t-1} - x_t) * mu))^2`, without biases.

    Source: Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv 2503.14456.
    """

    halo = 1

    def __init__(self, context: LayerContext, hidden: int) -> None:
        super().__init__()
        self.context = context
        self.mu = nn.Parameter(torch.empty(context.width))
        self.key = nn.Linear(context.width, hidden, bias=False)
        self.value = ResidualLinear(hidden, context.width, bias=False)
        self.initialize(std=0.02)

    @in_float32
    def initialize(self, std: float) -> None:
        """Start as published, whatever `std` other weights have."""
        width, layer, layers = self.context.width, self.context.layer, self.context.layers
        with torch.no_grad():
            self.mu.copy_(lerp_start(width, (1 - layer / layers) ** 4, self.mu.device))
        bound = 0.5 / math.sqrt(width)
        nn.init.uniform_(self.key.weight, -bound, bound)
        nn.init.zeros_(self.value.weight)

    def mix(self, x: Tensor, state: ChannelMixState | None, window: Window) -> tuple[Tensor, ChannelMixState]:
        before, last = shift(x, None if state is None else state.last, window)
        return self._square(x, before), ChannelMixState(last)

    def mix_token(self, x: Tensor, state: ChannelMixState, token: Token) -> Tensor:
        y = self._square(x, state.last.to(x.dtype))
        state.last.copy_(x)
        return y

    def empty_state(self, room: Room) -> ChannelMixState:
        return ChannelMixState(room.zeros(self.mu, self.context.width))

    def check_state(self, state: Any, x: Tensor) -> None:
        check_state(state, ChannelMixState, x)
        check_part("last", state.last, (x.shape[0], self.context.width), None, x.device)

    def flops(self, tokens: int) -> int:
        return 0  # but for the projections

    def _square(self, x: Tensor, before: Tensor) -> Tensor:
        return self.value(F.relu(self.key(torch.lerp(x, before, self.mu.to(x.dtype)))).square())
