"""What a mixer is: the interface, the surroundings it is built in, and what it returns."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["LayerContext", "Mixer", "MixerOutput", "ValueSharingMixer", "mix", "mix_step"]


@dataclass(frozen=True)
class LayerContext:
    """What the model tells each of its mixers; a mixer's config may override the heads and the rotary embedding."""

    width: int
    heads: int
    key_value_heads: int
    head_width: int
    bias: bool = False
    rotary: bool = True
    rotary_base: float = 10_000.0
    norm_eps: float = 1e-5
    layer: int = 0
    layers: int = 1


class MixerOutput(NamedTuple):
    """`y [B, T, M]`, and the state after the last token, or None unless it was asked for."""

    y: Tensor
    state: Any


class Mixer(nn.Module, ABC):
    """A layer that mixes along time and carries a state, under one law: splitting a sequence anywhere changes nothing.

    `mixer(x[:, :t], s0)` followed by `mixer(x[:, t:], s1)` equals `mixer(x, s0)`. A state is a NamedTuple of tensors
    with the batch first, among them `position [B]` int64, the tokens seen so far.
    """

    keep_states: bool = True
    """Whether the states inside of a sequence, where there are any, are kept for the backward pass: time for memory."""

    @property
    def head_counts(self) -> tuple[int, int] | None:
        """Heads, and how many different keys and values they have; None for a mixer without heads."""
        return None

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        state: Any = None,
        return_state: bool = False,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> MixerOutput:
        """Mix `x [B, T, M]`; changes no argument.

        Args:
            state: what `init_state` or an earlier call returned; None starts afresh.
            return_state: also return the state after the last token.
            lengths: `[B]` integers: only the first `lengths[b]` tokens of row `b` are real. What the padding on the
                right gives is undefined, and it never enters the state.
            resets: `[B, T]` bool: a token marked True forgets everything before it.
        """

    @abstractmethod
    def init_state(
        self,
        batch_size: int,
        *,
        max_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """Return an empty state, all zeros, for `batch_size` rows, on the parameters' device unless told otherwise.

        Args:
            max_len: tokens that the state must be able to hold, where its size depends on that.
            dtype: of cached activations, by default the parameters'; sums over the past are float32 (float64 in a
                float64 model) whatever this says.
        """

    def check_state(self, state: Any, x: Tensor) -> None:
        """Check that a state is this mixer's, for the rows of `x [B, ...]` and on its device.

        A model asks all its mixers before it computes anything.

        Raises:
            InputError: names the part of the state, what it was and what it must be.
        """

    @abstractmethod
    def step(self, x: Tensor, state: Any) -> Tensor:
        """Mix one token `x [B, M]` into `[B, M]`, writing the state's buffers in place; runs without gradients."""

    @abstractmethod
    def flops(self, tokens: int) -> int:
        """Forward FLOPs (a multiply-add is 2) of mixing one sequence of `tokens`, without the linear projections."""


class ValueSharingMixer(Mixer):
    """A mixer that also takes part in what the first such layer of a model hands on to the others: its values.

    Alone, or first in its model, it takes its own.
    """

    @abstractmethod
    def mix(
        self,
        x: Tensor,
        first_values: Tensor | None,
        state: Any = None,
        return_state: bool = False,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[MixerOutput, Tensor | None]:
        """As `forward`, with the first layer's values `[B, T, M]`, or None in the first layer; returns them too."""

    @abstractmethod
    def mix_step(self, x: Tensor, first_values: Tensor | None, state: Any) -> tuple[Tensor, Tensor | None]:
        """As `step`, with the first layer's values `[B, M]`, or None in the first layer; returns them too."""

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        return_state: bool = False,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> MixerOutput:
        return self.mix(x, None, state, return_state, lengths=lengths, resets=resets)[0]

    def step(self, x: Tensor, state: Any) -> Tensor:
        return self.mix_step(x, None, state)[0]


def mix(
    mixer: Mixer,
    x: Tensor,
    first_values: Tensor | None,
    state: Any,
    return_state: bool,
    lengths: Tensor | None,
    resets: Tensor | None,
) -> tuple[MixerOutput, Tensor | None]:
    """Run any mixer; values that are handed on pass by one that does not share them."""
    if isinstance(mixer, ValueSharingMixer):
        return mixer.mix(x, first_values, state, return_state, lengths=lengths, resets=resets)
    return mixer(x, state, return_state, lengths=lengths, resets=resets), first_values


def mix_step(mixer: Mixer, x: Tensor, first_values: Tensor | None, state: Any) -> tuple[Tensor, Tensor | None]:
    """The same for one token `[B, M]`, with the state written in place."""
    if isinstance(mixer, ValueSharingMixer):
        return mixer.mix_step(x, first_values, state)
    return mixer.step(x, state), first_values
