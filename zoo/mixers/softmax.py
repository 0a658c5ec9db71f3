"""Softmax attention: every token sees every token before it, and the state grows with the context."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from zoo.blocks.cache import KeyValueState, append, attend_in_place, check_cache, empty_cache, within_room
from zoo.blocks.head_mixer import HeadMixer
from zoo.blocks.heads import HeadConfig, HeadOutput, QueryKeyValue, resolve_heads
from zoo.blocks.layer import LayerContext, Room
from zoo.blocks.linear import weight_of
from zoo.blocks.softmax_attention import attend_where, attention_flops, causal_attention
from zoo.blocks.window import Token, Window
from zoo.errors import InputError
from zoo.kernels.interval_attention import interval_attention
from zoo.kernels.sequence import gather_tokens

__all__ = ["Softmax", "SoftmaxConfig"]


class SoftmaxConfig(HeadConfig):
    """Options of softmax attention."""

    name: Literal["softmax"] = "softmax"

    score_cap: float | None = Field(None, gt=0)
    """Scores s become `c tanh(s / c)`, below which they stay, as in Gemma 2. All pairs are then held in memory."""


class Softmax(HeadMixer):
    """`o_t = sum_{j <= t} w_tj v_j` with `w_t = softmax_j(q_t . k_j / sqrt(K))`; cost quadratic in T.

    The state holds keys and values of as many tokens as `init_state` was told, and never grows: one that a call without
    a state returns is full. A token too many is refused, or gives NaN where that cannot be told (`within_room`).

    Source: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762.
    """

    halo = 0
    takes_back = True

    def __init__(self, config: SoftmaxConfig, context: LayerContext) -> None:
        super().__init__()
        self.heads, self.cap = resolve_heads(config, context), config.score_cap
        self.input = QueryKeyValue(config, context, self.heads)
        self.output = HeadOutput(config, context, self.heads, normalized=True)

    def mix(self, x: Tensor, state: KeyValueState | None, window: Window) -> tuple[Tensor, KeyValueState]:
        q, k, v = self.input(x, window.positions)
        keys, values, before = k, v, window.before
        if window.group is not None:
            keys, values = (gather_tokens(part, window.group) for part in (k, v))
            before = before - window.group.rank * k.shape[1]
        if state is None:
            after = KeyValueState(keys.contiguous(), values.contiguous())
        else:
            keys = within_room(keys, state.keys.shape[1], window.after)
            after = append(state, keys, values, before, window.after)
        if self.cap is None and state is None and window.resets is None and window.group is None:
            return self.output(causal_attention(q, k, v), x), after
        last = window.positions.clamp(max=after.keys.shape[1] - 1)  # padding may stand beyond the cache
        first = window.starts[:, 1:]
        if self.cap is None:
            return self.output(interval_attention(q, *after, first, last), x), after
        slot = torch.arange(after.keys.shape[1], device=x.device)
        visible = (slot >= first[..., None]) & (slot <= last[..., None])
        return self.output(attend_where(q, *after, visible, cap=self.cap), x), after

    def mix_token(self, x: Tensor, state: KeyValueState, token: Token) -> Tensor:
        q, k, v = self.input(x, token.position)
        k = within_room(k, state.keys.shape[1], token.after)
        return self.output(attend_in_place(q, k, v, state, token, cap=self.cap), x)

    def empty_state(self, room: Room) -> KeyValueState:
        if room.max_len is None or room.max_len < 1:
            raise InputError(
                f"max_len: softmax attention needs the number of tokens its cache shall hold, was {room.max_len}"
            )
        return empty_cache(room, weight_of(self.input.projection), room.max_len, self.heads.key_value, self.heads.width)

    def check_state(self, state: Any, x: Tensor) -> None:
        check_cache(state, x, None, self.heads.key_value, self.heads.width)

    def capacity(self, state: KeyValueState) -> int:
        return state.keys.shape[1]

    def flops(self, tokens: int) -> int:
        return attention_flops(tokens * (tokens + 1) // 2, self.heads.query, self.heads.width)
