"""The layer around power attention, which linear, power and their gated kinds are settings of."""

from typing import Any, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from zoo.blocks.checks import check_part, check_sequence, check_state
from zoo.blocks.gate import RetentionGate, with_resets
from zoo.blocks.heads import HeadConfig, HeadOutput, QueryKeyValue, resolve_heads
from zoo.blocks.mixer import LayerContext, Mixer, MixerOutput
from zoo.blocks.positions import advance, token_positions
from zoo.kernels.power import (
    Heads,
    PowerState,
    forward_flops,
    init_power_state,
    power_attention,
    power_attention_step,
    state_size,
)
from zoo.kernels.precision import accumulation_dtype

__all__ = ["PowerHeadConfig", "PowerLayer", "PowerLayerState", "check_power_state"]


class PowerHeadConfig(HeadConfig):
    """Options of mixers that choose their power."""

    query_key_norm: bool = True

    p: int = Field(2, ge=1, le=4)
    """The power of the scores, which sets the size of the state: C(head_width + p - 1, p) rows a head."""

    normalize: bool | None = None
    """Divide by the sum of weights, which needs an even p; None: where p is even."""

    @model_validator(mode="after")
    def _check_power(self) -> Self:
        if self.normalize and self.p % 2:
            raise ValueError(f"normalize must be false for odd p={self.p}, whose weights can be negative")
        return self


class PowerLayerState(NamedTuple):
    """`S [B, Hk, D, V]` and `z [B, Hk, D]` as in `zoo.PowerState`, and `position [B]` int64, the tokens seen."""

    S: Tensor
    z: Tensor
    position: Tensor


class PowerLayer(Mixer):
    """Projections to heads, power attention between them, and the projection back.

    Args:
        config: options of the heads.
        context: what the model says.
        p: the power of the scores.
        normalize: divide by the sum of weights; None: where p is even. What is not normalised ends in an output norm,
            unless the config says otherwise.
        retention: range of the gates at the start; None: no gates.
    """

    def __init__(
        self,
        config: HeadConfig,
        context: LayerContext,
        *,
        p: int,
        normalize: bool | None,
        retention: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.p = p
        self.normalize = p % 2 == 0 if normalize is None else normalize
        self.heads = resolve_heads(config, context)
        self.input = QueryKeyValue(config, context, self.heads)
        self.gate = None if retention is None else RetentionGate(context.width, self.heads.key_value, retention)
        norm = not self.normalize if config.output_norm is None else config.output_norm
        self.output = HeadOutput(context, self.heads, norm)

    def forward(
        self,
        x: Tensor,
        state: PowerLayerState | None = None,
        return_state: bool = False,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> MixerOutput:
        check_sequence(x, lengths, resets)
        position, past = (None, None) if state is None else self._split(state, x)
        q, k, v = self.input(x, token_positions(position, x.shape[1], x.device))
        log_g = None if self.gate is None else self.gate(x)
        log_g = with_resets(log_g, resets, self.heads.key_value)
        o, past = power_attention(
            q, k, v, log_g, p=self.p, normalize=self.normalize, state=past, return_state=return_state, lengths=lengths,
            save_states=self.keep_states,
        )  # fmt: skip
        after = None if past is None else PowerLayerState(*past, advance(position, x, lengths))
        return MixerOutput(self.output(o), after)

    def init_state(
        self,
        batch_size: int,
        *,
        max_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> PowerLayerState:
        weight = self.input.projection.weight
        device, dtype = device or weight.device, accumulation_dtype(weight.dtype)
        _, heads, width = self.heads
        past = init_power_state(batch_size, heads, width, width, self.p, device=device, dtype=dtype)
        return PowerLayerState(*past, torch.zeros(batch_size, device=device, dtype=torch.int64))

    @torch.no_grad()
    def step(self, x: Tensor, state: PowerLayerState) -> Tensor:
        position, past = self._split(state, x)
        q, k, v = self.input.token(x, position)
        log_g = None if self.gate is None else self.gate.token(x)
        o = power_attention_step(q, k, v, log_g, state=past, p=self.p, normalize=self.normalize)
        position.add_(1)
        return self.output(o)

    @property
    def head_counts(self) -> tuple[int, int]:
        return self.heads.query, self.heads.key_value

    def flops(self, tokens: int) -> int:
        query, key_value, width = self.heads
        return forward_flops(1, tokens, Heads(query, key_value, key_value), width, width, self.p)

    def check_state(self, state: Any, x: Tensor) -> None:
        check_state(state, PowerLayerState, x)
        _, heads, width = self.heads
        dtype = accumulation_dtype(self.input.projection.weight.dtype)
        check_power_state(PowerState(state.S, state.z), x, heads, width, width, self.p, dtype)

    def _split(self, state: PowerLayerState, x: Tensor) -> tuple[Tensor, PowerState]:
        """Return the position and the op's own state."""
        self.check_state(state, x)
        return state.position, PowerState(state.S, state.z)


def check_power_state(
    state: PowerState, x: Tensor, heads: int, key_width: int, value_width: int, p: int, dtype: torch.dtype
) -> None:
    """Check `S [B, heads, D, V]` and `z [B, heads, D]` in a mixer's state, for the rows of `x [B, ...]`.

    Raises:
        InputError: they are of another batch size, width or p, of another dtype, or on another device.
    """
    shape = (x.shape[0], heads, state_size(key_width, p))
    check_part("S", state.S, (*shape, value_width), dtype, x.device)
    check_part("z", state.z, shape, dtype, x.device)
