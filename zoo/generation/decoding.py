"""Decoding token by token: a model with its entry points compiled, and the state of one batch that is being decoded."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.utils import _pytree

from zoo.blocks.cache import check_room
from zoo.blocks.checks import values_at_hand
from zoo.blocks.linear import hooks_of
from zoo.errors import InputError
from zoo.generation.prefill import Prefill, check_prompts, read_prompts
from zoo.generation.sampling import Sampling, check_whole
from zoo.generation.stepper import Stepper
from zoo.models import Decoder, DecoderOutput, DecoderState
from zoo.states import map_state

__all__ = ["CompiledDecoder", "Decoding", "compile_decoder", "start_decoding"]

_CACHE_STEP = 256  # capacities of caches are multiples of this, so that prompts of similar lengths share a recording


class CompiledDecoder:
    """A decoder with its entry points for generation compiled whole, each on its first use.

    `prefill` takes prompts of any length, `step` one token a row, and `forward` tokens that are checked; they are those
    of `zoo.models.Decoder`. `decoding` puts the first two together. On a GPU it records the step and the choice of a
    token in a CUDA graph, and keeps it, with the state that it is recorded over, for the next batch of the same sizes
    and options. Made by `compile_decoder`.
    """

    def __init__(self, model: Decoder, **options: Any) -> None:
        self.model = model
        self.config = model.config
        self.init_state, self.check_state = model.init_state, model.check_state
        self.decoding_state, self.rollback = model.decoding_state, model.rollback
        self._prefill = torch.compile(model.prefill, fullgraph=True, **options)
        self._step = torch.compile(model.step, fullgraph=True, **options)
        self._forward = torch.compile(model.forward, fullgraph=True, **options)
        self._kept: _Kept | None = None

    def prefill(self, tokens: Tensor, state: DecoderState, lengths: Tensor) -> tuple[Tensor, DecoderState]:
        """As `Decoder.prefill`."""
        self._check_room(tokens, state, lengths)
        return self._named(self._prefill, tokens, state, lengths)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """As `Decoder.step`."""
        self._check_room(tokens, state, 1)
        return self._named(self._step, tokens, state)

    def forward(self, tokens: Tensor, state: DecoderState, return_state: bool = False) -> DecoderOutput:
        """As `Decoder.forward`, from a state."""
        self._check_room(tokens, state, tokens.shape[1])
        output: DecoderOutput = self._named(self._forward, tokens, state, return_state)
        return output

    def decoding(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        prefill_chunk: int | None = None,
    ) -> "Decoding":
        """Read prompts `[B, T]`, of which the first `lengths [B]` tokens of each row are real, and begin to decode.

        The options, and the errors, are those of `zoo.generation.generate`.
        """
        sampling = Sampling(temperature, top_k, top_p)
        return start_decoding(
            self, tokens, lengths, sampling, max_new_tokens=max_new_tokens, seed=seed, prefill_chunk=prefill_chunk
        )

    def release(self) -> None:
        """Let go of the state and the recording that are kept for the next batch."""
        self._kept = None

    def begin(self, batch_size: int, max_len: int, sampling: Sampling, max_new_tokens: int) -> "Decoding":
        """Return a decoding over an empty state, the one that is kept if it fits and nobody uses it."""
        max_len += -max_len % _CACHE_STEP
        key = self._key(self.decoding_state(batch_size, max_len=max_len, device="meta"), sampling)
        if self._kept is not None and self._kept.key == key and self._kept.free:
            map_state(Tensor.zero_, self._kept.stepper.state)
        else:
            self._kept = None  # before there is another state
            state = self.decoding_state(batch_size, max_len=max_len)
            self._kept = _Kept(key, _make_stepper(self, state, torch.zeros_like(state.position), sampling))
        decoding = Decoding(self._kept.stepper, chosen=True, max_new_tokens=max_new_tokens)
        self._kept.user = weakref.ref(decoding)
        return decoding

    def _key(self, state: DecoderState, sampling: Sampling) -> tuple[object, ...]:
        """What must be as it was for a recording to hold: sizes, options, hooks, and where the weights are."""
        sizes = tuple((part.shape, part.dtype) for part in _pytree.tree_leaves(state))
        weights = tuple(x.data_ptr() for x in (*self.model.parameters(), *self.model.buffers()))
        device = self.model.token_embedding.weight.device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        return sizes, sampling, weights, autocast, hooks_of(self.model)

    def _check_room(self, tokens: Tensor, state: DecoderState, new: Tensor | int) -> None:
        """Refuse tokens that a cache has no room for, which a graph cannot, and first of all other states."""
        if isinstance(state, DecoderState) and values_at_hand(state.position):
            self.model.check_state(state, tokens)
            check_room(self.model.capacity(state), state.position + new)

    def _named(self, run: Callable[..., Any], tokens: Tensor, state: DecoderState, *rest: Any) -> Any:
        """Run what is compiled; input that it refuses is named, which the compiler would not."""
        try:
            with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):  # hooks that come or go compile anew
                return run(tokens, state, *rest)
        except TorchDynamoException:
            self.model.check_state(state, tokens)
            raise


def compile_decoder(model: Decoder, **options: Any) -> CompiledDecoder:
    """Return `model` ready for compiled generation; it shares the parameters, so training it further shows.

    Args:
        model: a decoder, or what `torch.compile` made of one (whose `step` would run uncompiled).
        options: passed on to `torch.compile`.

    Raises:
        InputError: a mode in which the compiler makes CUDA graphs, which cannot be part of another.
    """
    if options.get("mode") in ("reduce-overhead", "max-autotune"):
        raise InputError(
            f"mode: expected one without CUDA graphs, such as 'max-autotune-no-cudagraphs', was {options['mode']!r}"
        )
    return CompiledDecoder(getattr(model, "_orig_mod", model), **options)


class Decoding:
    """A batch that is being decoded: `next()` gives one token a row, and so does iterating over it.

    Made by `CompiledDecoder.decoding`, or by `from_state`.

    Args:
        stepper: chooses tokens; its state is this object's as long as this object lives.
        chosen: whether the stepper's tokens are already the first ones to give, or the last ones of the prompts.
        max_new_tokens: how many there are to give; None: no limit.
        room: how many more tokens the state can hold; None: as many as there are to give.
    """

    def __init__(self, stepper: Stepper, *, chosen: bool, max_new_tokens: int | None, room: int | None = None) -> None:
        self._stepper, self._chosen, self._left, self._room = stepper, chosen, max_new_tokens, room

    @classmethod
    def from_state(
        cls,
        model: Decoder | CompiledDecoder,
        state: DecoderState,
        tokens: Tensor,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> "Decoding":
        """Go on from a state of any origin.

        Args:
            model: whose state it is.
            state: what came before; taken over, and written in place from now on.
            tokens: `[B]` int64, the last token of each row, which the state has not seen.
            max_new_tokens: None: no limit but the room in a cache.
            temperature, top_k, top_p, seed: as in `zoo.generation.generate`.

        Raises:
            InputError: an option out of its range, a state of another batch size, dtype, device or model, or one whose
                cache has no room for `max_new_tokens`.
        """
        sampling = Sampling(temperature, top_k, top_p)
        if max_new_tokens is not None:
            check_whole("max_new_tokens", max_new_tokens, 0)
        model.check_state(state, tokens)
        room = _room(model, state)
        if room is not None and max_new_tokens is not None and max_new_tokens > room:
            raise InputError(
                f"max_new_tokens: expected at most {room}, for which the state has room, was {max_new_tokens}"
            )
        stepper = _make_stepper(model, state, tokens.to(torch.int64, copy=True), sampling)
        stepper.seed(seed)
        return cls(stepper, chosen=False, max_new_tokens=max_new_tokens, room=room)

    def read(self, prefill: Prefill, tokens: Tensor, lengths: Tensor, *, seed: int | None, piece: int | None) -> None:
        """Read prompts into an empty state and choose the first tokens; see `read_prompts` and `Stepper.seed`."""
        self._stepper.seed(seed)
        if self._left:
            device = self._stepper.tokens.device
            self._stepper.choose(read_prompts(prefill, tokens.to(device), lengths.to(device), self.state, piece))

    @property
    def state(self) -> DecoderState:
        """The state after all tokens but the last that `next` gave; it stays where it is."""
        return self._stepper.state

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed from a CUDA graph by now."""
        return self._stepper.recorded

    def next(self) -> Tensor:
        """Return the next token of every row, `[B]` int64, on the device and without waiting for it.

        It is the same tensor each time, which the next call overwrites; -1 where the logits were NaN.

        Raises:
            InputError: all `max_new_tokens` were given, or a cache is full.
        """
        if self._left == 0:
            raise InputError("max_new_tokens: expected more, all of them were given")
        if self._chosen:
            self._chosen = False
        else:
            if self._room is not None:  # counted here, so that nobody waits for the device to tell
                if self._room == 0:
                    raise InputError("state: its cache is full; make it with a larger max_len")
                self._room -= 1
            self._stepper.advance()
        if self._left is not None:
            self._left -= 1
        return self._stepper.tokens

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the tokens that are left, each `[B]` int64 and a tensor of its own."""
        while self._left != 0:
            yield self.next().clone()


def start_decoding(
    model: Decoder | CompiledDecoder,
    tokens: Tensor,
    lengths: Tensor | None,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int | None = None,
    prefill_chunk: int | None = None,
) -> Decoding:
    """Read prompts into a state and choose the first tokens; see `CompiledDecoder.decoding`."""
    if prefill_chunk is not None:
        check_whole("prefill_chunk", prefill_chunk, 1)
    if lengths is None:
        lengths = torch.full(tokens.shape[:1], tokens.shape[-1])
    needed = check_prompts(tokens, lengths, max_new_tokens, model.config)
    if isinstance(model, CompiledDecoder):
        decoding = model.begin(tokens.shape[0], needed, sampling, max_new_tokens)
    else:
        state = model.decoding_state(tokens.shape[0], max_len=needed)
        stepper = _make_stepper(model, state, torch.zeros_like(state.position), sampling)
        decoding = Decoding(stepper, chosen=True, max_new_tokens=max_new_tokens)
    decoding.read(model.prefill, tokens, lengths, seed=seed, piece=prefill_chunk)
    return decoding


def _room(model: Decoder | CompiledDecoder, state: DecoderState) -> int | None:
    """How many more tokens a state can hold; waits for the device, once for all that are then decoded."""
    capacity = (model.model if isinstance(model, CompiledDecoder) else model).capacity(state)
    if capacity is None or not state.position.shape[0]:
        return None
    return capacity - int(state.position.amax())


def _make_stepper(model: Decoder | CompiledDecoder, state: DecoderState, tokens: Tensor, sampling: Sampling) -> Stepper:
    """Return a stepper over `state` and `tokens [B]`, both of which are its own from now on."""
    # Without the compiler a step may do what no graph can hold, such as looking at values.
    return Stepper(model.step, state, tokens, sampling, record=isinstance(model, CompiledDecoder) and tokens.is_cuda)


class _Kept:
    """A stepper that may be used again, what it is good for, and who uses it now."""

    def __init__(self, key: tuple[object, ...], stepper: Stepper) -> None:
        self.key, self.stepper = key, stepper
        self.user: weakref.ref[Decoding] | None = None

    @property
    def free(self) -> bool:
        return self.user is None or self.user() is None
