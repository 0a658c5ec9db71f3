"""The state of a converted layer as a layer of transformers' cache: beams, cropping, static addresses."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from transformers.cache_utils import Cache, CacheLayerMixin

from zoo.errors import InputError
from zoo.hf.between_heads import BetweenHeads, HeadInputs
from zoo.hf.conversion import HeadShapes
from zoo.states import map_state, overwrite_state, reorder_state

__all__ = ["StateLayer", "put_state_layers", "state_layer"]


class StateLayer(CacheLayerMixin):
    """A layer of a cache that holds a state of fixed size, whatever the length of the past.

    To a mask it looks like one that holds every token: layers that attend may take their masks' sizes from it.

    Args:
        mixer: what the state belongs to.
        max_cache_len: of the static cache that it stands in, whose tensors stay at their addresses; None: in another.
    """

    is_compileable = True  # a step of one token writes in place
    is_croppable = True
    is_sliding = False

    def __init__(self, mixer: BetweenHeads, max_cache_len: int | None = None) -> None:
        super().__init__()
        self.mixer = mixer
        self.max_cache_len = max_cache_len
        self.state: Any = None
        self.cumulative_length: Any = 0 if max_cache_len is None else torch.tensor(0)
        self.record_past = False
        self._anchor: Any = None  # the state at the last crop, None: before the first token
        self._since: HeadInputs | None = None  # what was read since then

    def attend(self, inputs: HeadInputs) -> Tensor:
        """Return the outputs `[B, T, Hq, V]` of further tokens, which enter the state."""
        tokens = inputs.k.shape[1]
        if self.record_past:
            self._record(inputs)
        in_place = tokens == 1 and inputs.resets is None and not torch.is_grad_enabled()
        if in_place and self.state is not None:
            o = self.mixer.attend_token(inputs, self.state)
        else:
            o, after = self.mixer.attend(inputs, self.state, return_state=True)
            self._put(after)
        self._count(tokens, inputs.k.device)
        return o

    def activate_past_recording(self) -> None:
        """Keep what is read from now on, so that `crop` can take it back."""
        self.record_past = True
        self._start_recording()

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, at most those since the last crop, from which the state is computed again.

        Args:
            tokens_to_remove: minus their count, as transformers counts them.

        Raises:
            InputError: they are not recorded.
        """
        count = abs(tokens_to_remove)
        if count:
            read = 0 if self._since is None else self._since.k.shape[1]
            if tokens_to_remove > 0 or not self.record_past or count > read:
                raise InputError(
                    f"tokens_to_remove: expected from -{read} to 0, was {tokens_to_remove}: a recurrent state gives "
                    "back only what it read since activate_past_recording() or the last crop"
                )
            self._put(self._recompute(read - count))
            if isinstance(self.cumulative_length, Tensor):
                self.cumulative_length.sub_(count)
            else:
                self.cumulative_length -= count
        if self.record_past:
            self._start_recording()

    def get_seq_length(self) -> Any:
        return self.cumulative_length if self.is_initialized else 0

    def get_max_length(self) -> int:
        return -1 if self.max_cache_len is None else self.max_cache_len

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.max_cache_len is not None:
            return self.max_cache_len, 0
        return self.cumulative_length + query_length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the empty state for keys `[B, H, ., K]` and values `[B, H, ., V]`, where heads are not grouped."""
        rows, heads = key_states.shape[:2]
        shapes = HeadShapes(heads, heads, key_states.shape[-1], value_states.shape[-1])
        self._put(self.mixer.empty(rows, shapes, key_states.device, key_states.dtype))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise InputError(
            "cache: expected one that only the converted model writes, its layer was given keys and values to store"
        )

    def reset(self) -> None:
        if self.max_cache_len is None:
            self.state, self.cumulative_length, self.is_initialized = None, 0, False
        else:
            self.cumulative_length.zero_()
            map_state(Tensor.zero_, self.state)
        self._start_recording()

    def offload(self) -> None:
        """A state stays where it is used: it is small, and needed whole at each token."""

    def prefetch(self) -> None:
        """See `offload`."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._map_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            rows = _pytree.tree_leaves(self.state)[0]
            self._map_rows(torch.arange(rows.shape[0], device=rows.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map_rows(indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices)

    def _map_rows(self, index: Tensor) -> None:
        if self.state is None:
            return
        self._put(reorder_state(self.state, index))
        self._anchor = reorder_state(self._anchor, index)
        if self._since is not None:
            self._since = self._since.map(lambda x: x[index.to(x.device)])

    def _put(self, state: Any) -> None:
        """Take over a state; a static cache keeps its tensors where they are."""
        if self.max_cache_len is not None and self.state is not None and not torch.is_grad_enabled():
            if state is None:
                map_state(Tensor.zero_, self.state)
                return
            old, new = (_pytree.tree_leaves(x)[0].shape for x in (self.state, state))
            if old == new:
                overwrite_state(self.state, state)
                return
        self.state = state
        self.is_initialized = state is not None
        if self.max_cache_len is not None and not torch.compiler.is_compiling():
            map_state(_fixed, state)

    def _count(self, tokens: int, device: torch.device) -> None:
        if self.max_cache_len is None:
            self.cumulative_length += tokens
            return
        if self.cumulative_length.device != device:
            self.cumulative_length = self.cumulative_length.to(device)
        if not torch.compiler.is_compiling():
            _fixed(self.cumulative_length)
        self.cumulative_length.add_(tokens)

    def _start_recording(self) -> None:
        self._since = None
        self._anchor = map_state(Tensor.clone, self.state) if self.record_past else None

    def _record(self, inputs: HeadInputs) -> None:
        past = self._since
        if past is None:
            self._since = inputs
            return
        q, k, v = (torch.cat(pair, 1) for pair in zip(past[:3], inputs[:3], strict=True))
        gates = (_joined(past.log_g, inputs.log_g), _joined(past.log_rate, inputs.log_rate))
        resets = past.resets
        if resets is not None or inputs.resets is not None:
            none = torch.zeros_like(k[:, :, 0, 0], dtype=torch.bool)
            first, second = none[:, : past.k.shape[1]], none[:, past.k.shape[1] :]
            resets = torch.cat(
                (first if past.resets is None else past.resets, second if inputs.resets is None else inputs.resets), 1
            )
        self._since = HeadInputs(q, k, v, inputs.scale, *gates, resets, inputs.offset)

    def _recompute(self, tokens: int) -> Any:
        """Return the state `tokens` after the last crop."""
        assert self._since is not None
        if tokens == 0:
            return map_state(Tensor.clone, self._anchor)
        return self.mixer.attend(self._since.first(tokens), self._anchor, return_state=True)[1]


def _joined(past: Tensor | None, new: Tensor | None) -> Tensor | None:
    return None if past is None or new is None else torch.cat((past, new), 1)


def _fixed(x: Tensor) -> Tensor:
    """Say that a tensor stays at its address, so that a compiled step may run as a CUDA graph."""
    torch._dynamo.mark_static_address(x)
    return x


def state_layer(cache: Cache, layer: int, mixer: BetweenHeads) -> StateLayer:
    """Return the layer of a cache that holds the state of a converted layer, which takes an empty one's place.

    Raises:
        InputError: the cache holds keys and values there, of another model or from before the conversion.
    """
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= layer:
            cache.layers.append(cache.layer_class_to_replicate())
    found = cache.layers[layer]
    if isinstance(found, StateLayer):
        return found
    if found.is_initialized:
        raise InputError(
            f"cache: expected an empty one, or one that this model has filled; its layer {layer} holds keys and values"
        )
    # The longest of the cache's: a layer with a window says less, and masks of other layers may be made by this one.
    lengths = [length for each in cache.layers if (length := getattr(each, "max_cache_len", None)) is not None]
    made = StateLayer(mixer, max(lengths, default=None))
    cache.layers[layer] = made
    return made


def put_state_layers(cache: Cache, mixers: dict[int, BetweenHeads]) -> None:
    """Put an empty state into a cache for each converted layer."""
    for layer, mixer in mixers.items():
        state_layer(cache, layer, mixer)
