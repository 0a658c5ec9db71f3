"""The state of a zoo model as the one layer of a transformers cache: beams, cropping, room that grows."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from transformers.cache_utils import Cache, CacheLayerMixin

from zoo.errors import InputError
from zoo.models import Decoder
from zoo.states import map_state, reorder_state

__all__ = ["DecoderStateLayer", "decoder_layer"]


class DecoderStateLayer(CacheLayerMixin):
    """All layers' states of one decoder.

    Args:
        decoder: whose state it is.
        max_len: tokens that caches of keys and values have room for at first; they grow as they have to.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, decoder: Decoder, max_len: int = 0) -> None:
        super().__init__()
        self.decoder, self.max_len = decoder, max_len
        self.state: Any = None
        self.length = 0
        self.record_past = False
        self._anchor: Any = None  # the state at the last crop, None: before the first token
        self._since: tuple[Tensor, Tensor] | None = None  # tokens and resets since then

    def run(self, tokens: Tensor, resets: Tensor | None) -> Tensor:
        """Return the logits `[B, T, vocab]` of further tokens `[B, T]`, which enter the state."""
        rows, count = tokens.shape
        if self.record_past:
            marked = torch.zeros_like(tokens, dtype=torch.bool) if resets is None else resets
            parts = (tokens, marked)
            self._since = parts if self._since is None else _after(self._since, parts)
        if self.state is None:
            self.state = self.decoder.init_state(rows, max_len=max(self.max_len, count))
            self.is_initialized = True
        self.state = self._with_room(self.state, self.length + count)
        self.length += count
        if count == 1 and resets is None and not torch.is_grad_enabled():
            return self.decoder.step(tokens[:, 0], self.state)[:, None]
        logits, self.state = self.decoder(tokens, self.state, return_state=True, resets=resets)
        return logits

    def activate_past_recording(self) -> None:
        """Keep what is read from now on, so that `crop` can take it back."""
        self.record_past = True
        self._start_recording()

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, at most those since the last crop, from which the state is computed again.

        Args:
            tokens_to_remove: minus their count.

        Raises:
            InputError: they are not recorded.
        """
        count, read = abs(tokens_to_remove), 0 if self._since is None else self._since[0].shape[1]
        if count and (tokens_to_remove > 0 or not self.record_past or count > read):
            raise InputError(
                f"tokens_to_remove: expected from -{read} to 0, was {tokens_to_remove}: a recurrent state gives "
                "back only what it read since activate_past_recording() or the last crop"
            )
        if count and self._since is not None:
            self.length -= count
            tokens, resets = (x[:, : read - count] for x in self._since)
            self.state = map_state(Tensor.clone, self._anchor)
            if tokens.shape[1]:
                past = self.state or self.decoder.init_state(len(tokens), max_len=max(self.max_len, self.length))
                past = self._with_room(past, self.length)
                _, self.state = self.decoder(tokens, past, return_state=True, resets=resets)
        if self.record_past:
            self._start_recording()

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise InputError("cache: expected one that is made by its first tokens, not early")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise InputError("cache: expected one that only a zoo model writes, was given keys and values to store")

    def reset(self) -> None:
        self.state, self.length, self.is_initialized = None, 0, False
        self._start_recording()

    def offload(self) -> None:
        """A state stays where it is used."""

    def prefetch(self) -> None:
        """See `offload`."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.state, self._anchor = (reorder_state(x, beam_idx) for x in (self.state, self._anchor))
        if self._since is not None:
            tokens, resets = (x[beam_idx.to(x.device)] for x in self._since)
            self._since = (tokens, resets)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            position = self.state.position
            self.reorder_cache(torch.arange(len(position), device=position.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices)

    def _start_recording(self) -> None:
        self._since = None
        self._anchor = map_state(Tensor.clone, self.state) if self.record_past else None

    def _with_room(self, state: Any, needed: int) -> Any:
        """Return a state whose caches of keys and values hold `needed` tokens; each growth at least doubles them."""
        capacity = self.decoder.capacity(state)
        if capacity is None or needed <= capacity:
            return state
        larger = self.decoder.init_state(len(state.position), max_len=max(needed, 2 * capacity))
        return _pytree.tree_map(
            lambda new, old: old if new.shape == old.shape else torch.cat((old, new[:, old.shape[1] :]), 1),
            larger,
            state,
        )


def _after(past: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat((past[0], new[0]), 1), torch.cat((past[1], new[1]), 1)


def decoder_layer(cache: Cache, decoder: Decoder, max_len: int = 0) -> DecoderStateLayer:
    """Return the layer of a cache that holds a decoder's state, which takes the place of empty ones.

    Raises:
        InputError: the cache holds what another model left.
    """
    found = cache.layers[0] if len(cache.layers) == 1 else None
    if isinstance(found, DecoderStateLayer) and found.decoder is decoder:
        return found
    if any(layer.is_initialized for layer in cache.layers):
        raise InputError("cache: expected an empty one, or one that this model has filled, was another model's")
    made = DecoderStateLayer(decoder, max_len)
    cache.layers, cache.layer_class_to_replicate = [made], None
    return made
