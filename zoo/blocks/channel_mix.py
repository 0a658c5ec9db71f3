"""RWKV-7's feed-forward layer, which sees the token before."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.checks import check_part, check_sequence, check_state
from zoo.blocks.linear import ResidualLinear
from zoo.blocks.mixer import LayerContext, Mixer, MixerOutput
from zoo.blocks.positions import advance
from zoo.blocks.token_shift import lerp_start, shift

__all__ = ["ChannelMix", "ChannelMixState"]


class ChannelMixState(NamedTuple):
    """`last [B, M]`, the last input, and `position [B]` int64, the tokens seen."""

    last: Tensor
    position: Tensor


class ChannelMix(Mixer):
    """`W_v relu(W_k (x_t + (x_{t-1} - x_t) * mu))^2`, without biases.

    Source: Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv 2503.14456.
    """

    def __init__(self, context: LayerContext, hidden: int) -> None:
        super().__init__()
        self.context = context
        self.mu = nn.Parameter(torch.empty(context.width))
        self.key = nn.Linear(context.width, hidden, bias=False)
        self.value = ResidualLinear(hidden, context.width, bias=False)
        self.initialize(std=0.02)

    def initialize(self, std: float) -> None:
        """Start as published, whatever `std` other weights have."""
        width, layer, layers = self.context.width, self.context.layer, self.context.layers
        with torch.no_grad():
            self.mu.copy_(lerp_start(width, (1 - layer / layers) ** 4, self.mu.device))
        bound = 0.5 / math.sqrt(width)
        nn.init.uniform_(self.key.weight, -bound, bound)
        nn.init.zeros_(self.value.weight)

    def forward(
        self,
        x: Tensor,
        state: ChannelMixState | None = None,
        return_state: bool = False,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> MixerOutput:
        check_sequence(x, lengths, resets)
        last, position = (None, None) if state is None else self._split(state, x)
        before, last = shift(x, last, lengths=lengths, resets=resets)
        after = ChannelMixState(last, advance(position, x, lengths)) if return_state else None
        return MixerOutput(self._mix(x, before), after)

    def init_state(
        self,
        batch_size: int,
        *,
        max_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ChannelMixState:
        device, dtype = device or self.mu.device, dtype or self.mu.dtype
        last = torch.zeros(batch_size, self.context.width, device=device, dtype=dtype)
        return ChannelMixState(last, torch.zeros(batch_size, device=device, dtype=torch.int64))

    @torch.no_grad()
    def step(self, x: Tensor, state: ChannelMixState) -> Tensor:
        last, position = self._split(state, x)
        y = self._mix(x, last.to(x.dtype))
        last.copy_(x)
        position.add_(1)
        return y

    def flops(self, tokens: int) -> int:
        return 0  # but for the projections

    def _mix(self, x: Tensor, before: Tensor) -> Tensor:
        return self.value(F.relu(self.key(torch.lerp(x, before, self.mu.to(x.dtype)))).square())

    def check_state(self, state: Any, x: Tensor) -> None:
        check_state(state, ChannelMixState, x)
        check_part("last", state.last, (x.shape[0], self.context.width), None, x.device)

    def _split(self, state: ChannelMixState, x: Tensor) -> tuple[Tensor, Tensor]:
        self.check_state(state, x)
        return state.last, state.position
