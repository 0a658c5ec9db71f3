"""What a mixer is: a layer that mixes along time, in a model or by itself."""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from zoo.blocks.checks import check_progress, check_sequence
from zoo.blocks.earlier import (
    EarlierStates,
    check_any_state,
    check_rollback,
    keep_current,
    mix_keeping,
    most_rollback,
    new_state,
    take_back,
)
from zoo.blocks.layer import Layer, Room
from zoo.blocks.window import Token, Window, open_token, open_window
from zoo.kernels.devices import usable_device

__all__ = ["Mixer", "MixerOutput", "MixerState"]


class MixerState(NamedTuple):
    """The state of a mixer by itself: what it keeps, and how far it is, which a model counts once for all layers.

    `position [B]` int64 counts the tokens seen; before `start [B]` int64 of them stands nothing of this document.
    """

    layer: Any
    position: Tensor
    start: Tensor


class MixerOutput(NamedTuple):
    """`y [B, T, M]`, and the state after the last token, or None unless it was asked for."""

    y: Tensor
    state: Any


class Mixer(Layer):
    """A layer that mixes along time and carries a state, under one law: splitting a sequence anywhere changes nothing.

    `mixer(x[:, :t], s0)` followed by `mixer(x[:, t:], s1)` equals `mixer(x, s0)`. A mixer's file says how it mixes a
    sequence (`mix`) and one token (`mix_token`), and what it keeps (`empty_state`, `check_state`).
    """

    architecture: ClassVar[str | None] = None
    """Whose own mixer it is: what that architecture puts around others, it has inside."""

    takes_back = False

    keep_states: bool = True
    """Whether the states inside of a sequence, where there are any, are kept for the backward pass: time for memory."""

    @property
    def head_counts(self) -> tuple[int, int] | None:
        """Heads, and how many different keys and values they have; None for a mixer without heads."""
        return None

    @property
    def head_groups(self) -> int | None:
        """Groups of heads that do not know of one another, so that several processes can have them apart; None: there
        are none.
        """
        return None

    def keep_share(self, count: int) -> None:
        """Compute one of `count` equal shares of the groups of heads from now on, of which the caller leaves it the
        parameters (`zoo.models.head_shares`).
        """
        raise NotImplementedError(f"{type(self).__name__} has no groups of heads")

    @abstractmethod
    def mix(self, x: Tensor, state: Any, window: Window) -> tuple[Tensor, Any]:
        """Mix `x [B, T, M]` into `y [B, T, M]`, and return the state after it if `window.return_state`.

        Changes no argument. What padding gives is undefined, and it never enters the state; a token marked in
        `window.resets` forgets everything before it.
        """

    @abstractmethod
    def mix_token(self, x: Tensor, state: Any, token: Token) -> Tensor:
        """Mix one token `x [B, M]` into `[B, M]`, writing the state's tensors in place; runs without gradients."""

    @abstractmethod
    def flops(self, tokens: int) -> int: ...

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        return_state: bool = False,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        window: Window | Token | None = None,
    ) -> MixerOutput:
        """Mix `x [B, T, M]`; changes no argument.

        Args:
            state: what `init_state` or an earlier call returned; None starts afresh.
            return_state: also return the state after the last token.
            lengths: `[B]` integers: only the first `lengths[b]` tokens of row `b` are real. What the padding on the
                right gives is undefined, and it never enters the state.
            resets: `[B, T]` bool: a token marked True forgets everything before it.
            window: given by a model, which says all this there, and keeps positions itself: see `Layer`.

        Raises:
            InputError: names the argument, what it was and what it must be.
        """
        if isinstance(window, Token):
            return MixerOutput(self._mix_token(x, state, window), state)
        if window is not None:
            y, after = self._mix(x, state, window)
            return MixerOutput(y, after if window.return_state else None)
        check_sequence(x, lengths, resets)
        if state is not None:
            self._check(state, x)
        window = open_window(x, state, lengths=lengths, resets=resets, return_state=return_state)
        y, after = self._mix(x, None if state is None else state.layer, window)
        return MixerOutput(y, MixerState(after, window.after, window.last_start) if return_state else None)

    def init_state(
        self,
        batch_size: int,
        *,
        max_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> MixerState:
        """Return an empty state, all zeros, for `batch_size` rows, on the parameters' device unless told otherwise.

        Args:
            max_len: tokens that the state must be able to hold, where its size depends on that.
            dtype: of cached activations, by default the parameters'; sums over the past are float32 (float64 in a
                float64 model) whatever this says.
        """
        return self._empty_state(Room(batch_size, max_len, usable_device(device), dtype))

    def decoding_state(
        self,
        batch_size: int,
        *,
        max_len: int | None = None,
        rollback: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> MixerState:
        """Return an empty state for decoding, as `zoo.models.Decoder.decoding_state` does."""
        place = usable_device(device)
        return self._empty_state(Room.for_decoding(batch_size, max_len, place, dtype, rollback=rollback))

    @torch.no_grad()
    def step(self, x: Tensor, state: MixerState) -> Tensor:
        """Mix one token `x [B, M]` into `[B, M]`, writing the state's tensors in place; runs without gradients."""
        self._check(state, x)
        y, _ = self(x, state.layer, window=open_token(state))
        state.position.add_(1)
        return y

    @torch.no_grad()
    def rollback(self, state: MixerState, tokens: int | Tensor) -> None:
        """Take back the last tokens of each row, in place, as `zoo.models.Decoder.rollback` does."""
        check_progress(state, MixerState, state.position)
        count = check_rollback(tokens, state.position - state.start, most_rollback(self, state.layer))
        state.position.sub_(count)
        take_back(state.layer, state.position, count)

    def _mix(self, x: Tensor, state: Any, window: Window) -> tuple[Tensor, Any]:
        return (
            mix_keeping(self.mix, x, state, window) if isinstance(state, EarlierStates) else self.mix(x, state, window)
        )

    def _mix_token(self, x: Tensor, state: Any, token: Token) -> Tensor:
        if not isinstance(state, EarlierStates):
            return self.mix_token(x, state, token)
        keep_current(state, token.position)
        return self.mix_token(x, state.now, token)

    def _empty_state(self, room: Room) -> MixerState:
        parameter = next(self.parameters())
        return MixerState(new_state(self, room), room.no_tokens(parameter), room.no_tokens(parameter))

    def _check(self, state: Any, x: Tensor) -> None:
        check_progress(state, MixerState, x)
        check_any_state(self, state.layer, x)
