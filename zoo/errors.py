"""Errors that a user can act on: one line that names the argument, what it was and what it must be."""

import difflib
from collections.abc import Iterable

from zoo.kernels.errors import InputError, ZooError

__all__ = ["CheckpointError", "ConfigError", "CorpusError", "InputError", "TrainingError", "ZooError", "nearest"]


class ConfigError(ZooError, ValueError):
    """A recipe, study or override that does not describe a valid configuration."""


class CorpusError(ZooError):
    """Text or token shards that cannot be read, or are too small to train on."""


class CheckpointError(ZooError):
    """A checkpoint that is damaged, incomplete or of another model."""


class TrainingError(ZooError):
    """Training that cannot go on, for example because the loss is no longer finite."""


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the candidate closest to `word`, or an empty string when none is close."""
    matches = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
