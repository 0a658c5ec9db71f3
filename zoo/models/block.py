"""A block: a mixer and a feed-forward layer, each behind a norm and beside the residual stream."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from zoo.blocks.around import put_around
from zoo.blocks.channel_mix import ChannelMix, ChannelMixState
from zoo.blocks.feed_forward import make_feed_forward
from zoo.blocks.mixer import Mixer, mix, mix_step
from zoo.blocks.norms import make_norm
from zoo.errors import InputError
from zoo.mixers import MixerConfig, mixers
from zoo.models.checkpointing import run_checkpointed
from zoo.recipe.model import DecoderConfig
from zoo.recipe.training import Checkpointing

__all__ = ["Block", "BlockState"]


class BlockState(NamedTuple):
    """The states of a mixer and of a feed-forward layer that has one."""

    mixer: Any
    feed_forward: ChannelMixState


class Block(nn.Module):
    """`x + mixer(norm(x))`, then `x + feed_forward(norm(x))` where there is a feed-forward layer.

    The state is the mixer's, or a `BlockState` with a feed-forward layer that has one too. What a `ValueSharingMixer`
    hands on passes through blocks of other mixers.
    """

    mixer: Mixer
    checkpointing: Checkpointing = "none"
    """What is kept for the backward pass, where there is one."""

    def __init__(self, config: DecoderConfig, mixer: MixerConfig, layer: int) -> None:
        super().__init__()
        context = config.layer_context(layer)
        self.mixer_norm = make_norm(config.norm, config.width, config.norm_eps, config.bias)
        built = mixers[mixer.name].build(mixer, context)
        self.mixer = put_around(config.around, mixer.name == config.around, built, context)
        if config.feed_forward == "rwkv7":
            self.feed_forward: nn.Module | None = ChannelMix(context, config.hidden_width)
        else:
            self.feed_forward = make_feed_forward(config.feed_forward, config.width, config.hidden_width, config.bias)
        if self.feed_forward is not None:
            self.feed_forward_norm = make_norm(config.norm, config.width, config.norm_eps, config.bias)

    def forward(
        self,
        x: Tensor,
        first_values: Tensor | None,
        state: Any,
        return_state: bool,
        lengths: Tensor | None,
        resets: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Any]:
        """Return the residual stream `[B, T, M]`, the values handed on, and the state if asked for."""
        arguments = (x, first_values, state, return_state, lengths, resets)
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            return self._run(*arguments)
        return run_checkpointed(self._run, self.checkpointing, *arguments)

    def _run(
        self,
        x: Tensor,
        first_values: Tensor | None,
        state: Any,
        return_state: bool,
        lengths: Tensor | None,
        resets: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Any]:
        past, memory = self._split(state)
        u = self.mixer_norm(x)
        (y, past), first_values = mix(self.mixer, u, first_values, past, return_state, lengths, resets)
        x = x + y
        if isinstance(self.feed_forward, ChannelMix):
            y, memory = self.feed_forward(
                self.feed_forward_norm(x), memory, return_state, lengths=lengths, resets=resets
            )
            return x + y, first_values, BlockState(past, cast(ChannelMixState, memory)) if return_state else None
        return self._feed_forward(x), first_values, past

    def step(self, x: Tensor, first_values: Tensor | None, state: Any) -> tuple[Tensor, Tensor | None]:
        """The same for one token `[B, M]`, with the state written in place."""
        past, memory = self._split(state)
        y, first_values = mix_step(self.mixer, self.mixer_norm(x), first_values, past)
        x = x + y
        if isinstance(self.feed_forward, ChannelMix):
            assert memory is not None
            return x + self.feed_forward.step(self.feed_forward_norm(x), memory), first_values
        return self._feed_forward(x), first_values

    def init_state(
        self, batch_size: int, *, max_len: int | None, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Any:
        """The state before the first token, as `Mixer.init_state`."""
        past = self.mixer.init_state(batch_size, max_len=max_len, device=device, dtype=dtype)
        if not isinstance(self.feed_forward, ChannelMix):
            return past
        return BlockState(past, self.feed_forward.init_state(batch_size, device=device, dtype=dtype))

    def check_state(self, state: Any, x: Tensor) -> None:
        """Check that a state is this block's, for the rows of `x [B, ...]` and on its device."""
        past, memory = self._split(state)
        self.mixer.check_state(past, x)
        if isinstance(self.feed_forward, ChannelMix):
            self.feed_forward.check_state(memory, x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x if self.feed_forward is None else x + self.feed_forward(self.feed_forward_norm(x))

    def _split(self, state: Any) -> tuple[Any, ChannelMixState | None]:
        if state is None or not isinstance(self.feed_forward, ChannelMix):
            return state, None
        if not isinstance(state, BlockState):
            raise InputError(f"state: expected BlockState as init_state returns it, was {type(state).__name__}")
        return state.mixer, state.feed_forward
