"""Sliding-window attention: every token sees itself and the `window - 1` tokens before it."""

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo.blocks.cache import KeyValueState, append, attend_in_place, check_cache, empty_cache
from zoo.blocks.head_mixer import HeadMixer
from zoo.blocks.heads import HeadConfig, HeadOutput, QueryKeyValue, resolve_heads
from zoo.blocks.layer import LayerContext, Room
from zoo.blocks.linear import own_part, weight_of
from zoo.blocks.softmax_attention import attend_where, attention_flops
from zoo.blocks.window import Token, Window
from zoo.errors import InputError
from zoo.kernels.interval_attention import interval_attention, supports_flex
from zoo.kernels.precision import concatenate
from zoo.kernels.sequence import SequenceGroup, tail
from zoo.limits import LONGEST

__all__ = ["SlidingWindow", "SlidingWindowConfig"]


class SlidingWindowConfig(HeadConfig):
    """Options of sliding-window attention."""

    name: Literal["sliding-window"] = "sliding-window"

    window: int = Field(256, ge=1, le=LONGEST)
    """Tokens that a token sees, itself included. Through L layers a token is reached by L x (window - 1) before it."""

    sinks: bool = False
    """A learned score a head that takes its part of the softmax and gives nothing, so that a token may look nowhere."""

    score_cap: float | None = Field(None, gt=0)
    """Scores s become `c tanh(s / c)`, below which they stay, as in Gemma 2."""

    @model_validator(mode="after")
    def _check_cap(self) -> Self:
        if self.sinks and self.score_cap is not None:
            raise ValueError(f"score_cap: must be null beside sinks, got {self.score_cap}")
        return self


class SlidingWindow(HeadMixer):
    """Softmax attention over the last `window` tokens; cost linear in T, and a state of fixed size.

    Source: Beltagy et al., "Longformer", arXiv 2004.05150; Jiang et al., "Mistral 7B", arXiv 2310.06825; sinks as in
    OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", arXiv 2508.10925.
    """

    takes_back = True

    def __init__(self, config: SlidingWindowConfig, context: LayerContext) -> None:
        super().__init__()
        self.window, self.cap = config.window, config.score_cap
        self.heads = resolve_heads(config, context)
        self.input = QueryKeyValue(config, context, self.heads)
        self.sink = nn.Parameter(torch.zeros(self.heads.query)) if config.sinks else None
        self.output = HeadOutput(config, context, self.heads, normalized=True)

    def initialize(self, std: float) -> None:
        """Start sinks at zero, the score of a query and a key that have nothing in common."""
        if self.sink is not None:
            nn.init.zeros_(self.sink)

    @property
    def own_sink(self) -> Tensor | None:
        """`[Hq]`, where there are sinks."""
        return None if self.sink is None else own_part(self.sink)

    @property
    def halo(self) -> int:
        return self.window - 1

    def mix(self, x: Tensor, state: KeyValueState | None, window: Window) -> tuple[Tensor, KeyValueState | None]:
        if window.group is not None:
            return self._mix_over(x, state, window, window.group)
        past = self.empty_state(Room(x.shape[0], device=x.device)) if state is None else state
        q, k, v = self.input(x, window.positions)
        if state is None and self.sink is None and self.cap is None and supports_flex(q):
            first = torch.maximum(window.starts[:, 1:], window.positions - (self.window - 1))
            attended = interval_attention(q, k, v, first, window.positions)
        else:
            attended = banded_attention(q, k, v, past, window, self.window, self.own_sink, self.cap)
        return self.output(attended, x), append(
            past, k, v, window.before, window.after
        ) if window.return_state else None

    def _mix_over(
        self, x: Tensor, state: KeyValueState | None, window: Window, group: SequenceGroup
    ) -> tuple[Tensor, KeyValueState | None]:
        """Mix this process's share, whose first tokens see keys of the share before."""
        q, k, v = self.input(x, window.positions)
        held = self.empty_state(Room(x.shape[0], device=x.device)) if state is None else state
        if held.keys.shape[1] != self.window:
            raise InputError("state: expected one of init_state where several processes have one sequence")
        past = self._past_over(held, k, v, window, group)
        if self.sink is not None or self.cap is not None:
            attended = banded_attention(q, k, v, past, window, self.window, self.own_sink, self.cap)
        else:
            slots = (window.before[:, None] + torch.arange(-self.halo, 0, device=q.device)) % self.window
            row = torch.arange(x.shape[0], device=q.device)[:, None]
            keys, values = (
                concatenate((ring[row, slots].to(q.dtype), own), 1) for ring, own in zip(past, (k, v), strict=True)
            )
            last = self.halo + torch.arange(q.shape[1], device=q.device)
            start = window.starts[:, 1:] - window.before[:, None] + self.halo
            attended = interval_attention(q, keys, values, torch.maximum(start, last - self.halo), last[None])
        if not window.return_state:
            return self.output(attended, x), None
        end = window.before + (x.shape[1] if window.lengths is None else window.lengths)
        after = append(past, k, v, window.before, end)
        after = KeyValueState(*(window.at_the_end(ring.to(part.dtype)) for ring, part in zip(after, held, strict=True)))
        return self.output(attended, x), after

    def _past_over(
        self, held: KeyValueState, k: Tensor, v: Tensor, window: Window, group: SequenceGroup
    ) -> KeyValueState:
        """The cache before this share: in the first what is held, then that of the share before, but for one token that
        no query sees.
        """
        slots = (torch.arange(self.window, device=k.device) - window.before[:, None]) % self.window
        row = torch.arange(k.shape[0], device=k.device)[:, None]
        before = (F.pad(tail(own, self.halo, group), (0, 0, 0, 0, 1, 0))[row, slots] for own in (k, v))
        return KeyValueState(*(torch.where(group.rank == 0, *both) for both in zip(held, before, strict=True)))

    def mix_token(self, x: Tensor, state: KeyValueState, token: Token) -> Tensor:
        q, k, v = self.input(x, token.position)
        # A ring with room for what may be taken back holds more tokens than are seen.
        token = token._replace(start=torch.maximum(token.start, token.after - self.window))
        return self.output(attend_in_place(q, k, v, state, token, self.own_sink, self.cap), x)

    def empty_state(self, room: Room) -> KeyValueState:
        slots = self.window + (room.rollback or 0)  # so that what may be taken back has overwritten nothing in reach
        return empty_cache(room, weight_of(self.input.projection), slots, self.heads.key_value, self.heads.width)

    def most_rollback(self, state: KeyValueState) -> int:
        return state.keys.shape[1] - self.window

    def check_state(self, state: Any, x: Tensor) -> None:
        slots = state.keys.shape[1] if isinstance(state, KeyValueState) and state.keys.dim() == 4 else 0
        check_cache(state, x, max(self.window, slots), self.heads.key_value, self.heads.width)

    def flops(self, tokens: int) -> int:
        full = max(0, tokens - self.window)
        rising = tokens - full
        return attention_flops(rising * (rising + 1) // 2 + full * self.window, self.heads.query, self.heads.width)


def banded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: KeyValueState,
    window: Window,
    width: int,
    sink: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """Attend from q `[B, T, Hq, K]` to the `width` keys up to each query, among `past` and k, v `[B, T, Hk, K]`.

    `sink [Hq]` and `cap` are as in `attend_where`.

    The queries are cut into blocks, each of which meets its own block of keys and those before it that its band can
    reach: a quarter of the band to a block, which keeps both the copies of keys and the pairs computed in vain few.
    """
    B, T = q.shape[:2]
    block = -(-width // 4)
    before = -(-(width - 1) // block)  # blocks of keys before a query's own
    # One more than needed: the compiler then knows that there are two at least, and compiles once for all lengths.
    blocks = (T + block - 1) // block + 1
    padding = blocks * block - T

    reach = torch.arange(-before * block, 0, device=q.device)
    slots = (window.before[:, None] + reach) % past.keys.shape[1]
    row = torch.arange(B, device=q.device)[:, None]

    def key_blocks(old: Tensor, new: Tensor) -> Tensor:
        whole = F.pad(concatenate((old[row, slots].to(new.dtype), new), dim=1), (0, 0, 0, 0, 0, padding))
        cut = whole.unflatten(1, (-1, block))
        return concatenate([cut[:, i : i + blocks] for i in range(before + 1)], dim=2).flatten(0, 1)

    query = torch.arange(block, device=q.device)[:, None]
    key = torch.arange(-before * block, block, device=q.device)  # counted, like the query, from its block's first token
    in_band = (key <= query) & (key > query - width)
    first_seen = window.starts[:, 1:] - window.before[:, None]  # counted from the first token of this call
    if window.resets is None and window.positions.shape[0] == 1:
        first_seen = first_seen[:1]  # the same in every row
    key_index = torch.arange(blocks, device=q.device)[:, None, None] * block + key
    not_before = key_index >= F.pad(first_seen, (0, padding)).unflatten(1, (blocks, block))[..., None]
    visible = (in_band & not_before).expand(B, -1, -1, -1).flatten(0, 1)

    query_blocks = F.pad(q, (0, 0, 0, 0, 0, padding)).unflatten(1, (blocks, block)).flatten(0, 1)
    o = attend_where(query_blocks, key_blocks(past.keys, k), key_blocks(past.values, v), visible, sink, cap)
    return o.unflatten(0, (B, blocks)).flatten(1, 2)[:, :T]
