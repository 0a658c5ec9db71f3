"""Softmax attention: every token sees every token before it, and the state grows with the context."""

from typing import Any, Literal

import torch
from torch import Tensor

from zoo.blocks.cache import KeyValueState, append, attend_in_place, check_cache, empty_cache, held_positions
from zoo.blocks.checks import check_sequence, values_at_hand
from zoo.blocks.heads import HeadConfig, HeadOutput, QueryKeyValue, resolve_heads
from zoo.blocks.mixer import LayerContext, Mixer, MixerOutput
from zoo.blocks.positions import advance, document_starts, token_positions
from zoo.blocks.softmax_attention import attention_flops, softmax_attention
from zoo.errors import InputError

__all__ = ["Softmax", "SoftmaxConfig"]


class SoftmaxConfig(HeadConfig):
    """Options of softmax attention."""

    name: Literal["softmax"] = "softmax"


class Softmax(Mixer):
    """`o_t = sum_{j <= t} w_tj v_j` with `w_t = softmax_j(q_t . k_j / sqrt(K))`; cost quadratic in T.

    The state holds keys and values of as many tokens as `init_state` was told, and never grows: one that a call without
    a state returns is full.

    Source: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762.
    """

    def __init__(self, config: SoftmaxConfig, context: LayerContext) -> None:
        super().__init__()
        self.heads = resolve_heads(config, context)
        self.input = QueryKeyValue(config, context, self.heads)
        self.output = HeadOutput(context, self.heads, norm=bool(config.output_norm))

    def forward(
        self,
        x: Tensor,
        state: KeyValueState | None = None,
        return_state: bool = False,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> MixerOutput:
        check_sequence(x, lengths, resets)
        if state is not None:
            self._check_room(state, x, lengths)
        positions = token_positions(None if state is None else state.position, x.shape[1], x.device)
        q, k, v = self.input(x, positions)
        if state is None:
            start = torch.zeros(x.shape[0], device=x.device, dtype=torch.int64)
            after = KeyValueState(k.contiguous(), v.contiguous(), advance(None, x, lengths), start)
            held = positions
        else:
            after = append(state, k, v, lengths)
            held = held_positions(after.position, after.keys.shape[1])

        starts = document_starts(positions, after.start, resets, lengths)
        if state is None and resets is None:
            visible = None
        else:
            visible = (held[:, None] >= starts[:, 1:, None]) & (held[:, None] <= positions[..., None])
        y = self.output(softmax_attention(q, after.keys, after.values, visible))
        return MixerOutput(y, KeyValueState(*after[:3], starts[:, -1]) if return_state else None)

    def init_state(
        self,
        batch_size: int,
        *,
        max_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KeyValueState:
        if max_len is None or max_len < 1:
            raise InputError(
                f"max_len: softmax attention needs the number of tokens its cache shall hold, was {max_len}"
            )
        weight = self.input.projection.weight
        _, heads, width = self.heads
        return empty_cache(batch_size, max_len, heads, width, device or weight.device, dtype or weight.dtype)

    @torch.no_grad()
    def step(self, x: Tensor, state: KeyValueState) -> Tensor:
        self._check_room(state, x[:, None], None)
        q, k, v = self.input.token(x, state.position)
        return self.output(attend_in_place(q, k, v, state))

    @property
    def head_counts(self) -> tuple[int, int]:
        return self.heads.query, self.heads.key_value

    def flops(self, tokens: int) -> int:
        return attention_flops(tokens * (tokens + 1) // 2, self.heads.query, self.heads.width)

    def check_state(self, state: Any, x: Tensor) -> None:
        check_cache(state, x, None, self.heads.key_value, self.heads.width)

    def _check_room(self, state: KeyValueState, x: Tensor, lengths: Tensor | None) -> None:
        """Check the state, and that it has room for the tokens of `x`; unchecked, the oldest would be overwritten."""
        self.check_state(state, x)
        if not values_at_hand(state.position) or not x.shape[0]:
            return
        capacity, needed = state.keys.shape[1], int(advance(state.position, x, lengths).amax())
        if needed > capacity:
            raise InputError(
                f"state: holds {capacity} tokens, {needed} needed; make it with init_state(max_len={needed})"
            )
