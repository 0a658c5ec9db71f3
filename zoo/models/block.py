"""A block: a mixer and a feed-forward layer, each behind a norm and beside the residual stream."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from zoo.blocks.around import put_around
from zoo.blocks.earlier import check_any_state, current, most_rollback, new_state
from zoo.blocks.feed_forward import make_feed_forward
from zoo.blocks.layer import Layer, Room
from zoo.blocks.norms import make_norm
from zoo.blocks.window import Shared, Token, Window
from zoo.errors import InputError
from zoo.mixers import MixerConfig, mixers
from zoo.models.checkpointing import run_checkpointed
from zoo.recipe.model import DecoderConfig
from zoo.recipe.training import Checkpointing

__all__ = ["Block"]


class _Placed(NamedTuple):
    """A layer and the norms around it, or what leaves as it is in their place."""

    before: nn.Module
    layer: Layer
    after: nn.Module


class Block(nn.Module):
    """`x + layer(norm(x))` for a mixer, and then for a feed-forward layer where there is one, or beside it.

    The state is a tuple of those of the layers.
    """

    checkpointing: Checkpointing = "none"
    """What is kept for the backward pass, where there is one."""

    def __init__(self, config: DecoderConfig, mixer: MixerConfig, layer: int) -> None:
        super().__init__()
        context = config.layer_context(layer)
        self.multiplier = config.residual_multiplier
        self.parallel = config.parallel
        self.mixer_norm, self.mixer_after_norm = _norms(config)
        self.mixer = put_around(config.around, mixers[mixer.name].build(mixer, context), context)
        self.feed_forward = make_feed_forward(config.feed_forward, config.hidden_width, context)
        if self.feed_forward is not None:
            self.feed_forward_norm, self.feed_forward_after_norm = _norms(config)

    def forward(
        self, x: Tensor, state: Sequence[Any] | None, window: Window | Token
    ) -> tuple[Tensor, Sequence[Any], dict[str, Tensor]]:
        """Return the residual stream `[..., M]`, the layers' states, and what is shared with the blocks that follow.

        The states are those that the layers return in such a window.
        """
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            return self._run(x, state, window)
        return run_checkpointed(self._run, self.checkpointing, x, state, window)

    def _run(
        self, x: Tensor, state: Sequence[Any] | None, window: Window | Token
    ) -> tuple[Tensor, Sequence[Any], dict[str, Tensor]]:
        # Shared in here alone: a checkpointed region has no effect but what it returns, and may run twice.
        window = window._replace(shared=Shared(window.shared.earlier))
        layers, states, entered = self._layers(), [], x
        for (before, layer, after), past in zip(layers, state or (None,) * len(layers), strict=True):
            y, past = layer(before(entered if self.parallel else x), past, window=window)
            y = after(y)
            x = x + (y if self.multiplier == 1 else y * self.multiplier)
            states.append(past)
        return x, tuple(states), window.shared.take()

    def empty_state(self, room: Room) -> tuple[Any, ...]:
        """Return the state before the first token."""
        return tuple(new_state(layer, room) for _, layer, _ in self._layers())

    def check_state(self, state: Any, x: Tensor) -> None:
        """Check that a state is this block's, for the rows of `x [B, ...]` and on its device."""
        layers = self._layers()
        if len(state) != len(layers):
            raise InputError(f"state: expected {len(layers)} layers in a block as in this model, was {len(state)}")
        for (_, layer, _), part in zip(layers, state, strict=True):
            check_any_state(layer, part, x)

    def capacity(self, state: Sequence[Any]) -> int | None:
        """As `Layer.capacity`, of the layer that holds the fewest tokens."""
        found = (layer.capacity(current(part)) for (_, layer, _), part in zip(self._layers(), state, strict=True))
        return min((capacity for capacity in found if capacity is not None), default=None)

    def most_rollback(self, state: Sequence[Any]) -> int | None:
        """As `Layer.most_rollback`, of the layer that can lose the fewest tokens."""
        found = (most_rollback(layer, part) for (_, layer, _), part in zip(self._layers(), state, strict=True))
        return min((most for most in found if most is not None), default=None)

    @property
    def halo(self) -> int | None:
        """As `Layer.halo`, of the layer that looks back furthest."""
        found = [layer.halo for _, layer, _ in self._layers()]
        return None if None in found else max(halo or 0 for halo in found)

    def flops(self, tokens: int) -> int:
        """As `Layer.flops`, of all layers."""
        return sum(layer.flops(tokens) for _, layer, _ in self._layers())

    def _layers(self) -> list[_Placed]:
        mixer = _Placed(self.mixer_norm, cast(Layer, self.mixer), self.mixer_after_norm)
        if self.feed_forward is None:
            return [mixer]
        return [mixer, _Placed(self.feed_forward_norm, self.feed_forward, self.feed_forward_after_norm)]


def _norms(config: DecoderConfig) -> tuple[nn.Module, nn.Module]:
    """Return what stands before a layer and what stands after it."""
    placed = (config.norm_placement != "after", config.norm_placement != "before")
    before, after = (
        make_norm(config.norm, config.width, config.norm_eps, config.bias) if normed else nn.Identity()
        for normed in placed
    )
    return before, after
