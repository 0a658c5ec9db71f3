"""What kinds of models of transformers have in common here: how each is read and written."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from torch import Tensor

from zoo.hf.weights.pieces import Piece
from zoo.hf.weights.settings import Settings
from zoo.models import Decoder, DecoderConfig

__all__ = ["Kind", "Source", "Target"]


class Source(NamedTuple):
    """What a config.json and the names of weights say: a decoder, its own attention, and how tensors correspond."""

    config: DecoderConfig
    attention: Sequence[Mapping[str, Any]]
    """The mixer of each layer, as a config; what of it other mixers know they take over."""

    pieces: Sequence[Piece]


class Target(NamedTuple):
    """What a decoder becomes: a config.json, and how tensors correspond."""

    settings: dict[str, Any]
    pieces: Sequence[Piece]


class Kind(NamedTuple):
    """One model type."""

    read: Callable[[Settings, Set[str]], Source]
    """From the config and the names of the weights."""

    write: Callable[[Decoder, Mapping[str, Tensor]], Target]
    """From a decoder and its weights. Raises `InputError` where it can be no model of this kind."""

    prefix: str = ""
    """What may stand before the names in a file, or not."""

    meaningless: tuple[str, ...] = ()
    """Ends of names of tensors that hold nothing learned."""

    architecture: str = ""
    """The class of transformers that such a file is loaded as."""
