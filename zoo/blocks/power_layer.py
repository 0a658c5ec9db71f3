"""The layer around power attention, which linear, power and their gated kinds are settings of."""

from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from zoo.blocks.checks import check_part, check_state
from zoo.blocks.gate import RetentionGate, with_resets
from zoo.blocks.head_mixer import HeadMixer
from zoo.blocks.heads import HeadConfig, HeadOutput, QueryKeyNorm, QueryKeyValue, resolve_heads
from zoo.blocks.layer import LayerContext, Room
from zoo.blocks.linear import weight_of
from zoo.blocks.offset import LearnedOffset, Offset
from zoo.blocks.window import Token, Window
from zoo.errors import InputError
from zoo.kernels.power import (
    Heads,
    PowerJournalState,
    PowerState,
    fold_size,
    forward_flops,
    init_power_state,
    open_journal,
    power_attention,
    power_attention_step,
    power_journal_attention,
    power_journal_step,
    state_size,
    worthwhile,
)
from zoo.kernels.precision import accumulation_dtype

__all__ = ["PowerHeadConfig", "PowerLayer", "PowerLayerState", "check_power_state"]

PowerLayerState = PowerState | PowerJournalState
"""Of `init_state`, or one for decoding, with recent tokens beside the sums."""


class PowerHeadConfig(HeadConfig):
    """Options of mixers that choose their power."""

    query_key_norm: QueryKeyNorm = True

    p: int = Field(2, ge=1, le=4)
    """The power of the scores, which sets the size of the state: C(head_width + p - 1, p) rows a head, and
    C(head_width + p, p) with an offset."""

    offset: Offset = 0.0
    """Added to scores before they are raised to their power: a number, or `learned`, one a head from 1 on."""

    normalize: bool | None = None
    """Divide by the sum of weights, which needs an even p; None: where p is even."""

    @model_validator(mode="after")
    def _check_power(self) -> Self:
        if self.normalize and self.p % 2:
            raise ValueError(f"normalize must be false for odd p={self.p}, whose weights can be negative")
        return self


class PowerLayer(HeadMixer):
    """Projections to heads, power attention between them, and the projection back.

    Args:
        config: options of the heads.
        context: what the model says.
        p: the power of the scores.
        normalize: divide by the sum of weights; None: where p is even. What is not normalised ends in an output norm,
            unless the config says otherwise.
        offset: added to scores, a number or `learned`.
        retention: range of the gates at the start; None: no gates.
    """

    halo = 0
    takes_back = True

    def __init__(
        self,
        config: HeadConfig,
        context: LayerContext,
        *,
        p: int,
        normalize: bool | None,
        offset: Offset = 0.0,
        retention: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.p = p
        self.normalize = p % 2 == 0 if normalize is None else normalize
        self.heads = resolve_heads(config, context)
        self.input = QueryKeyValue(config, context, self.heads)
        self.gate = None if retention is None else RetentionGate(context.width, self.heads.key_value, retention)
        self.offset: LearnedOffset | float = LearnedOffset(self.heads.query) if offset == "learned" else float(offset)
        self.output = HeadOutput(config, context, self.heads, normalized=self.normalize)

    @property
    def offset_of_heads(self) -> float | Tensor:
        """A number, or one of each query head `[Hq]`."""
        return self.offset() if isinstance(self.offset, LearnedOffset) else self.offset

    @property
    def has_offset(self) -> bool:
        """Whether states have rows for lower powers of the scores too."""
        return isinstance(self.offset, LearnedOffset) or self.offset != 0

    def mix(self, x: Tensor, state: PowerLayerState | None, window: Window) -> tuple[Tensor, PowerLayerState | None]:
        q, k, v = self.input(x, window.positions)
        log_g = None if self.gate is None else self.gate(x)
        log_g = with_resets(log_g, window.resets, self.heads.key_value)
        options: dict[str, Any] = {"p": self.p, "offset": self.offset_of_heads, "normalize": self.normalize}
        if isinstance(state, PowerJournalState):
            if window.group is not None:
                raise InputError("state: expected one of init_state where several processes have one sequence")
            options |= {"position": window.before, "keep": self._kept(state)}
            o, state = power_journal_attention(q, k, v, log_g, state=state, lengths=window.lengths, **options)
            return self.output(o, x), state
        o, state = power_attention(
            q, k, v, log_g, state=state, return_state=window.return_state, lengths=window.lengths,
            save_states=self.keep_states, group=window.group, **options,
        )  # fmt: skip
        return self.output(o, x), state

    def mix_token(self, x: Tensor, state: PowerLayerState, token: Token) -> Tensor:
        q, k, v = self.input(x, token.position)
        log_g = None if self.gate is None else self.gate(x)
        options: dict[str, Any] = {"p": self.p, "offset": self.offset_of_heads, "normalize": self.normalize}
        if isinstance(state, PowerJournalState):
            options |= {"position": token.position, "keep": self._kept(state)}
            o = power_journal_step(q, k, v, log_g, state=state, **options)
        else:
            o = power_attention_step(q, k, v, log_g, state=state, **options)
        return self.output(o, x)

    def empty_state(self, room: Room) -> PowerLayerState:
        weight, (_, heads, width) = weight_of(self.input.projection), self.heads
        sums = init_power_state(
            room.batch_size, heads, width, width, self.p, offset=self.has_offset,
            device=room.device or weight.device, dtype=accumulation_dtype(weight.dtype),
        )  # fmt: skip
        if room.rollback is None:
            return sums
        dtype = room.dtype or weight.dtype
        slots = self._alone(sums, dtype) + room.rollback + 2
        return open_journal(sums, Heads(*self.head_counts, heads), width, slots, dtype)

    def most_rollback(self, state: PowerLayerState) -> int:
        return self._kept(state) if isinstance(state, PowerJournalState) else 0

    def check_state(self, state: Any, x: Tensor) -> None:
        check_state(state, PowerJournalState if isinstance(state, PowerJournalState) else PowerState, x)
        _, heads, width = self.heads
        dtype = accumulation_dtype(weight_of(self.input.projection).dtype)
        check_power_state(state, x, heads, width, width, self.p, dtype, offset=self.has_offset)
        if isinstance(state, PowerJournalState):
            shape = (x.shape[0], *state.keys.shape[1:2], heads)
            check_part("keys", state.keys, (*shape, width), None, x.device)
            check_part("values", state.values, (*shape, width), state.keys.dtype, x.device)
            check_part("gates", state.gates, shape, torch.float64, x.device)
            check_part("folded", state.folded, shape[:1], torch.int64, x.device)

    def _alone(self, sums: PowerState, dtype: torch.dtype) -> int:
        """How many tokens are in a journal, of keys and values of this dtype, before any enters the sums."""
        _, heads, width = self.heads
        tokens = worthwhile(sums, Heads(*self.head_counts, heads), width, dtype)
        return max(tokens, fold_size(sums.S.shape[2]))

    def _kept(self, state: PowerJournalState) -> int:
        """How many tokens stay apart at least, once there are so many: those that its state was made to take back."""
        return max(0, state.slots - 2 - self._alone(state.sums, state.keys.dtype))

    def flops(self, tokens: int) -> int:
        query, key_value, width = self.heads
        heads = Heads(query, key_value, key_value)
        return forward_flops(1, tokens, heads, width, width, self.p, offset=self.has_offset)


def check_power_state(
    state: PowerLayerState, x: Tensor, heads: int, key_width: int, value_width: int, p: int, dtype: torch.dtype, *,
    offset: bool = False,
) -> None:  # fmt: skip
    """Check `S [B, heads, D, V]` and `z [B, heads, D]` in a mixer's state, for the rows of `x [B, ...]`.

    Raises:
        InputError: they are of another batch size, width or p, of another dtype, or on another device.
    """
    shape = (x.shape[0], heads, state_size(key_width, p, offset=offset))
    check_part("S", state.S, (*shape, value_width), dtype, x.device)
    check_part("z", state.z, shape, dtype, x.device)
