"""What stands between the heads of a converted layer: queries, keys and values go in, outputs and a state come out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.blocks.cache import KeyValueState, append, attend_in_place
from zoo.blocks.gate import with_resets
from zoo.blocks.layer import Room
from zoo.blocks.mixer import MixerState
from zoo.blocks.norms import unit_length
from zoo.blocks.window import open_token, open_window
from zoo.errors import ConfigError, InputError
from zoo.hf.conversion import Conversion, HeadShapes
from zoo.kernels.delta import delta_attention, delta_attention_step, init_delta_state
from zoo.kernels.power import init_power_state, power_attention, power_attention_step
from zoo.kernels.precision import accumulation_dtype
from zoo.mixers.sliding_window import banded_attention

__all__ = ["BetweenHeads", "HeadInputs", "between_heads"]


class HeadInputs(NamedTuple):
    """q `[B, T, Hq, K]`, k `[B, T, Hk, K]` and v `[B, T, Hk, V]`, rotated; the factor on `q . k`.

    `log_g` and `log_rate [B, T, H]` are log gates and log rates of writing, where a mixer has them, for so many heads
    as `BetweenHeads.gates` says; a token marked in `resets [B, T]` sees nothing before it; None: none does. `offset`, a
    number or `[Hq]`, is added to scores, where a mixer has one.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    log_g: Tensor | None = None
    log_rate: Tensor | None = None
    resets: Tensor | None = None
    offset: float | Tensor = 0.0

    def first(self, tokens: int) -> "HeadInputs":
        """Return the first tokens of each row."""
        return self.map(lambda x: x[:, :tokens])

    def map(self, function: Callable[[Tensor], Tensor]) -> "HeadInputs":
        """Return these inputs with every tensor changed that has rows, which all but the offset have."""
        parts: list[Any] = [function(x) if isinstance(x, Tensor) else x for x in self[:-1]]
        return HeadInputs(*parts)._replace(offset=self.offset)


class BetweenHeads(ABC):
    """Mixes heads along time under the zoo's law: splitting a sequence anywhere changes nothing.

    A state is a tuple of tensors, batch first, or a tuple of such.
    """

    gated: bool = False
    writes: bool = False
    """Whether it has rates of writing."""

    normalized: bool = True
    """Whether outputs are means of values; else they end in a norm of their own."""

    @abstractmethod
    def empty(self, rows: int, heads: HeadShapes, device: torch.device | None, dtype: torch.dtype) -> Any:
        """Return the state before the first token; `dtype` is that of keys and values."""

    @abstractmethod
    def attend(self, inputs: HeadInputs, state: Any, *, return_state: bool) -> tuple[Tensor, Any]:
        """Return outputs `[B, T, Hq, V]` and, if asked for, the state after the last token; changes no argument."""

    @abstractmethod
    def attend_token(self, inputs: HeadInputs, state: Any) -> Tensor:
        """Return the output of one token a row, `[B, 1, Hq, V]`, and write the state in place."""

    def gates(self, heads: HeadShapes) -> int:
        """Return how many gates there are, one a state."""
        return heads.key_value


@dataclass(frozen=True)
class PowerHeads(BetweenHeads):
    """Power attention; with p = 1, linear attention.

    With an offset, states have rows for lower powers of the scores too; its values come with the inputs.
    """

    p: int
    normalized: bool
    gated: bool
    has_offset: bool = False

    def empty(self, rows: int, heads: HeadShapes, device: torch.device | None, dtype: torch.dtype) -> Any:
        sizes = (heads.key_value, heads.key_width, heads.value_width)
        return init_power_state(
            rows, *sizes, self.p, offset=self.has_offset, device=device, dtype=accumulation_dtype(dtype)
        )

    def attend(self, inputs: HeadInputs, state: Any, *, return_state: bool) -> tuple[Tensor, Any]:
        q, k, v = inputs[:3]
        log_g = with_resets(inputs.log_g, inputs.resets, k.shape[2])
        return power_attention(
            q, k, v, log_g, p=self.p, scale=inputs.scale, offset=inputs.offset, normalize=self.normalized,
            state=state, return_state=return_state,
        )  # fmt: skip

    def attend_token(self, inputs: HeadInputs, state: Any) -> Tensor:
        q, k, v = (x[:, 0] for x in inputs[:3])
        log_g = None if inputs.log_g is None else inputs.log_g[:, 0]
        return power_attention_step(
            q, k, v, log_g, state=state, p=self.p, scale=inputs.scale, offset=inputs.offset, normalize=self.normalized
        )[:, None]  # fmt: skip


@dataclass(frozen=True)
class DeltaHeads(BetweenHeads):
    """The delta rule over keys of unit length, gated or not; every query head has a state of its own."""

    gated: bool
    writes = True
    normalized = False

    def empty(self, rows: int, heads: HeadShapes, device: torch.device | None, dtype: torch.dtype) -> Any:
        sizes = (heads.query, heads.key_width, heads.value_width)
        return (init_delta_state(rows, *sizes, 1, device=device, dtype=accumulation_dtype(dtype)),)

    def gates(self, heads: HeadShapes) -> int:
        return heads.query

    def attend(self, inputs: HeadInputs, state: Any, *, return_state: bool) -> tuple[Tensor, Any]:
        S = None if state is None else state[0]
        o, S = delta_attention(*_corrections(inputs), state=S, return_state=return_state, resets=inputs.resets)
        return o, (S,) if return_state else None

    def attend_token(self, inputs: HeadInputs, state: Any) -> Tensor:
        read = (None if x is None else x[:, 0] for x in _corrections(inputs))
        return delta_attention_step(*read, state=state[0])[:, None]  # type: ignore[arg-type]


def _corrections(inputs: HeadInputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """q, k, v, log gates and rates as the delta rule takes them: heads repeated, queries and keys of unit length."""
    q, k, v = inputs[:3]
    group = q.shape[2] // k.shape[2]
    k, v = (x if group == 1 else x.repeat_interleave(group, 2) for x in (k, v))
    assert inputs.log_rate is not None
    return unit_length(q), unit_length(k), v, inputs.log_g, inputs.log_rate.exp()


@dataclass(frozen=True)
class WindowHeads(BetweenHeads):
    """Softmax attention over the last `window` tokens."""

    window: int

    def empty(self, rows: int, heads: HeadShapes, device: torch.device | None, dtype: torch.dtype) -> Any:
        if heads.key_width != heads.value_width:
            raise InputError(
                f"mixer: sliding-window attention takes values as wide as keys, {heads.key_width}, was "
                f"{heads.value_width}; the power and delta mixers take any"
            )
        room, like = Room(rows, device=device, dtype=dtype), torch.empty(0, device=device, dtype=dtype)
        widths = (heads.key_width, heads.value_width)
        cache = KeyValueState(*(room.zeros(like, self.window, heads.key_value, width) for width in widths))
        return MixerState(cache, room.no_tokens(like), room.no_tokens(like))

    def attend(self, inputs: HeadInputs, state: Any, *, return_state: bool) -> tuple[Tensor, Any]:
        q, k, v = self._scaled(inputs), inputs.k, inputs.v
        if state is None:
            heads = HeadShapes(q.shape[2], k.shape[2], k.shape[3], v.shape[3])
            state = self.empty(q.shape[0], heads, q.device, k.dtype)
        window = open_window(q, state, lengths=None, resets=inputs.resets, return_state=return_state)
        o = banded_attention(q, k, v, state.layer, window, self.window)
        if not return_state:
            return o, None
        return o, MixerState(append(state.layer, k, v, window.before, window.after), window.after, window.last_start)

    def attend_token(self, inputs: HeadInputs, state: Any) -> Tensor:
        q = self._scaled(inputs)
        o = attend_in_place(q[:, 0], inputs.k[:, 0], inputs.v[:, 0], state.layer, open_token(state))
        state.position.add_(1)
        return o[:, None]

    def _scaled(self, inputs: HeadInputs) -> Tensor:
        """Queries for attention that divides by the root of their width itself."""
        return inputs.q * (inputs.scale * inputs.q.shape[-1] ** 0.5)


def between_heads(conversion: Conversion) -> BetweenHeads:
    """Return what a conversion puts between the heads of its layers.

    Raises:
        ConfigError: it is softmax, which is there already.
    """
    gated = conversion.mixer.startswith("gated-")
    match conversion.mixer.removeprefix("gated-"):
        case "power":
            assert conversion.p is not None
            normalized = conversion.p % 2 == 0 if conversion.normalize is None else conversion.normalize
            return PowerHeads(conversion.p, normalized, gated, has_offset=conversion.offset != 0)
        case "linear":
            return PowerHeads(1, False, gated)
        case "delta":
            return DeltaHeads(gated)
        case "sliding-window":
            assert conversion.window is not None
            return WindowHeads(conversion.window)
    raise ConfigError("mixer: softmax attention is what the model has already")
