"""What a layer of a block is: one law for mixers, feed-forward layers and what stands around a mixer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from zoo.blocks.rotary_scaling import ScalingConfig
from zoo.blocks.window import Token, Window
from zoo.errors import InputError

__all__ = ["Layer", "LayerContext", "Room"]


@dataclass(frozen=True)
class LayerContext:
    """What the model tells each of its layers; a mixer's config may override the heads and the rotary embedding."""

    width: int
    heads: int
    key_value_heads: int
    head_width: int
    bias: bool = False
    rotary: bool = True
    rotary_base: float = 10_000.0
    rotary_scaling: ScalingConfig | None = None
    rotary_share: float = 1.0
    attention_multiplier: float | None = None
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    layer: int = 0
    layers: int = 1


class Room(NamedTuple):
    """What a state is made for: `batch_size` rows, and as many tokens as a cache must hold.

    `device` and `dtype`, that of cached activations, are those of a layer's parameters where they are None. A state for
    decoding says how many tokens can be taken back from it, `rollback`; None: it is not made for that.
    """

    batch_size: int
    max_len: int | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    rollback: int | None = None

    @classmethod
    def for_decoding(
        cls, batch_size: int, max_len: int | None, device: torch.device | None, dtype: torch.dtype | None, *,
        rollback: int,
    ) -> Self:  # fmt: skip
        """Return what a state for decoding is made for.

        Raises:
            InputError: `rollback` is no number of tokens.
        """
        if type(rollback) is not int or rollback < 0:
            raise InputError(f"rollback: expected a whole number from 0 on, was {rollback!r:.60}")
        return cls(batch_size, max_len, device, dtype, rollback)

    def zeros(self, parameter: Tensor, *sizes: int) -> Tensor:
        """Return an empty cache of activations, `[batch_size, *sizes]`, of a layer with this parameter."""
        shape = (self.batch_size, *sizes)
        return torch.zeros(shape, device=self.device or parameter.device, dtype=self.dtype or parameter.dtype)

    def no_tokens(self, parameter: Tensor) -> Tensor:
        """Return a count of tokens seen, or a position, before the first: `[batch_size]` int64, zero."""
        return torch.zeros(self.batch_size, device=self.device or parameter.device, dtype=torch.int64)


class Layer(nn.Module, ABC):
    """Maps `(x, state)` to `(y, state)` and sees no token after its own; called as a module, by blocks and by others.

    What a layer keeps of the past is its own: a NamedTuple of tensors, batch first, or `()` where it looks at one token
    at a time. How far it is, the caller says, for all layers at once.
    """

    @abstractmethod
    def forward(self, x: Tensor, state: Any, *, window: Window | Token) -> tuple[Tensor, Any]:
        """Map `x [B, T, M]`, the tokens of `window`, and return their states if it asks for them.

        Of one token a row, `x [B, M]` in the window `Token`, the state is written in place.

        Args:
            state: what `empty_state` or an earlier call returned; None, for a sequence: nothing came before.
        """

    takes_back: ClassVar[bool] = True
    """Whether the state can lose its last tokens as it is; where it cannot, copies of earlier ones are kept."""

    def empty_state(self, room: Room) -> Any:
        """Return the state before the first token, all zeros."""
        return ()

    def most_rollback(self, state: Any) -> int | None:
        """Return how many tokens the state can lose at any time; None: as many as it has."""
        return None if self.takes_back else 0

    def capacity(self, state: Any) -> int | None:
        """Return how many tokens a state can hold in all; None: any number."""
        return None

    def check_state(self, state: Any, x: Tensor) -> None:
        """Check that a state is this layer's, for the rows of `x [B, ...]` and on its device.

        A model asks all its layers before it computes anything.

        Raises:
            InputError: names the part of the state, what it was and what it must be.
        """

    @property
    def halo(self) -> int | None:
        """Tokens before a share of a sequence that the layer needs from the process which has them, where several have
        one sequence (`Window.group`): none in a share may have fewer. None: the layer does not run so.
        """
        return None

    def flops(self, tokens: int) -> int:
        """Forward FLOPs (a multiply-add is 2) of mixing one sequence of `tokens`, without the linear projections."""
        return 0
