"""Sliding-window attention: every token sees itself and the `window - 1` tokens before it."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from zoo.blocks.cache import KeyValueState, append, attend_in_place, check_cache, empty_cache, recent
from zoo.blocks.heads import HeadConfig, HeadOutput, QueryKeyValue, resolve_heads
from zoo.blocks.layer import LayerContext, Room
from zoo.blocks.mixer import Mixer
from zoo.blocks.softmax_attention import attention_flops
from zoo.blocks.window import Token, Window
from zoo.kernels.interval_attention import interval_attention
from zoo.limits import LONGEST

__all__ = ["SlidingWindow", "SlidingWindowConfig"]


class SlidingWindowConfig(HeadConfig):
    """Options of sliding-window attention."""

    name: Literal["sliding-window"] = "sliding-window"

    window: int = Field(256, ge=1, le=LONGEST)
    """Tokens that a token sees, itself included. Through L layers a token is reached by L x (window - 1) before it."""


class SlidingWindow(Mixer):
    """Softmax attention over the last `window` tokens; cost linear in T, and a state of fixed size.

    Source: Beltagy et al., "Longformer", arXiv 2004.05150; Jiang et al., "Mistral 7B", arXiv 2310.06825.
    """

    def __init__(self, config: SlidingWindowConfig, context: LayerContext) -> None:
        super().__init__()
        self.window = config.window
        self.heads = resolve_heads(config, context)
        self.input = QueryKeyValue(config, context, self.heads)
        self.output = HeadOutput(context, self.heads, norm=bool(config.output_norm))

    def mix(self, x: Tensor, state: KeyValueState | None, window: Window) -> tuple[Tensor, KeyValueState | None]:
        q, k, v = self.input(x, window.positions)
        first, last = torch.maximum(window.starts[:, 1:], window.positions - self.window + 1), window.positions
        past = self.empty_state(Room(x.shape[0], device=x.device)) if state is None else state
        after = append(past, k, v, window) if window.return_state else None
        if state is not None:
            # The tokens before, in their order, and then these: positions count from the first of those.
            k, v = (torch.cat((x.to(k.dtype), y), 1) for x, y in zip(recent(state, window), (k, v), strict=True))
            first, last = (x + (self.window - 1 - window.before)[:, None] for x in (first, last))
        return self.output(interval_attention(q, k, v, first, last)), after

    def mix_token(self, x: Tensor, state: KeyValueState, token: Token) -> Tensor:
        q, k, v = self.input.token(x, token.position)
        return self.output(attend_in_place(q, k, v, state, token))

    def empty_state(self, room: Room) -> KeyValueState:
        return empty_cache(room, self.input.projection.weight, self.window, self.heads.key_value, self.heads.width)

    def check_state(self, state: Any, x: Tensor) -> None:
        check_cache(state, x, self.window, self.heads.key_value, self.heads.width)

    @property
    def head_counts(self) -> tuple[int, int]:
        return self.heads.query, self.heads.key_value

    def flops(self, tokens: int) -> int:
        full = max(0, tokens - self.window)
        rising = tokens - full
        return attention_flops(rising * (rising + 1) // 2 + full * self.window, self.heads.query, self.heads.width)
