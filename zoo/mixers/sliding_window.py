"""Sliding-window attention: every token sees itself and the `window - 1` tokens before it."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zoo.blocks.cache import KeyValueState, append, attend_in_place, check_cache, empty_cache
from zoo.blocks.checks import check_sequence
from zoo.blocks.heads import HeadConfig, HeadOutput, QueryKeyValue, resolve_heads
from zoo.blocks.mixer import LayerContext, Mixer, MixerOutput
from zoo.blocks.positions import document_starts, token_positions
from zoo.blocks.softmax_attention import attention_flops, softmax_attention
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
        past = self.init_state(x.shape[0], device=x.device) if state is None else state
        self.check_state(past, x)
        positions = token_positions(None if state is None else state.position, x.shape[1], x.device)
        q, k, v = self.input(x, positions)
        starts = document_starts(positions, past.start, resets, lengths)

        first_seen = starts[:, 1:] - past.position[:, None]  # counted from the first token of this call
        if state is None and resets is None:
            first_seen = first_seen[:1]  # the same in every row
        y = self.output(banded_attention(q, k, v, past, first_seen, self.window))
        return MixerOutput(y, KeyValueState(*append(past, k, v, lengths)[:3], starts[:, -1]) if return_state else None)

    def init_state(
        self,
        batch_size: int,
        *,
        max_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KeyValueState:
        weight = self.input.projection.weight
        _, heads, width = self.heads
        return empty_cache(batch_size, self.window, heads, width, device or weight.device, dtype or weight.dtype)

    @torch.no_grad()
    def step(self, x: Tensor, state: KeyValueState) -> Tensor:
        self.check_state(state, x)
        q, k, v = self.input.token(x, state.position)
        return self.output(attend_in_place(q, k, v, state))

    @property
    def head_counts(self) -> tuple[int, int]:
        return self.heads.query, self.heads.key_value

    def flops(self, tokens: int) -> int:
        full = max(0, tokens - self.window)
        rising = tokens - full
        return attention_flops(rising * (rising + 1) // 2 + full * self.window, self.heads.query, self.heads.width)

    def check_state(self, state: Any, x: Tensor) -> None:
        check_cache(state, x, self.window, self.heads.key_value, self.heads.width)


def banded_attention(q: Tensor, k: Tensor, v: Tensor, past: KeyValueState, first_seen: Tensor, window: int) -> Tensor:
    """Attend from q `[B, T, Hq, K]` to the `window` keys up to each query, among `past` and k, v `[B, T, Hk, K]`.

    The queries are cut into blocks, each of which meets its own block of keys and those before it that its window can
    reach: a quarter of the window to a block, which keeps both the copies of keys and the pairs computed in vain few.

    Args:
        first_seen: `[B or 1, T]` index of the first key that a query may see; key 0 is k's first, `past` is below.
    """
    B, T = q.shape[:2]
    block = -(-window // 4)
    before = -(-(window - 1) // block)  # blocks of keys before a query's own
    # One more than needed: the compiler then knows that there are two at least, and compiles once for all lengths.
    blocks = (T + block - 1) // block + 1
    padding = blocks * block - T

    reach = torch.arange(-before * block, 0, device=q.device)
    slots = (past.position[:, None] + reach) % window
    row = torch.arange(B, device=q.device)[:, None]

    def key_blocks(old: Tensor, new: Tensor) -> Tensor:
        whole = F.pad(torch.cat((old[row, slots].to(new.dtype), new), dim=1), (0, 0, 0, 0, 0, padding))
        cut = whole.unflatten(1, (-1, block))
        return torch.cat([cut[:, i : i + blocks] for i in range(before + 1)], dim=2).flatten(0, 1)

    query = torch.arange(block, device=q.device)[:, None]
    key = torch.arange(-before * block, block, device=q.device)  # counted, like the query, from its block's first token
    in_window = (key <= query) & (key > query - window)
    key_index = torch.arange(blocks, device=q.device)[:, None, None] * block + key
    not_before = key_index >= F.pad(first_seen, (0, padding)).unflatten(1, (blocks, block))[..., None]
    visible = (in_window & not_before).expand(B, -1, -1, -1).flatten(0, 1)

    query_blocks = F.pad(q, (0, 0, 0, 0, 0, padding)).unflatten(1, (blocks, block)).flatten(0, 1)
    o = softmax_attention(query_blocks, key_blocks(past.keys, k), key_blocks(past.values, v), visible)
    return o.unflatten(0, (B, blocks)).flatten(1, 2)[:, :T]
