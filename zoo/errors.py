"""Errors that a user can act on: one line that names the argument, what it was and what it must be."""

import difflib
import signal
from collections.abc import Iterable

from zoo.kernels.errors import InputError, ZooError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CorpusError",
    "FaultsError",
    "InputError",
    "Interruption",
    "TrainingError",
    "ZooError",
    "nearest",
    "refuse_all",
]


class ConfigError(ZooError, ValueError):
    """A recipe, study or override that does not describe a valid configuration."""


class FaultsError(ConfigError):
    """Several things that are wrong with a configuration, found at once; each is one line of the text."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))


class CorpusError(ZooError):
    """Text or token shards that cannot be read, or are too small to train on."""


class CheckpointError(ZooError):
    """A checkpoint that is damaged, incomplete or of another model."""


class TrainingError(ZooError):
    """Training that cannot go on, for example because the loss is no longer finite."""


class DivergenceError(TrainingError):
    """Training whose loss, gradient or weights are no longer finite: the same run from the same state ends so again."""


class UntrainableError(TrainingError):
    """A model that cannot be trained where it is: it does not compile, or does not fit in memory."""


class InUseError(TrainingError):
    """A folder that another process has at the moment."""


class Interruption(KeyboardInterrupt):
    """A signal that ended training, such as Ctrl-C.

    Args:
        signal: which.
        saved: the step after which training stopped, where a checkpoint holds it.
        at_once: it was the second one, after which nothing more is written.
    """

    def __init__(self, signal: signal.Signals, *, saved: int | None = None, at_once: bool = False) -> None:
        where = " at once" if at_once else "" if saved is None else f" after step {saved:,}, which is saved"
        super().__init__(f"stopped by {signal.name}{where}")
        self.signal, self.saved, self.at_once = signal, saved, at_once


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the candidate closest to `word`, or an empty string when none is close."""
    matches = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def refuse_all(faults: Iterable[str]) -> None:
    """Raise what was found to be wrong: a `ConfigError` of one line, `FaultsError` of several, nothing for none."""
    lines = list(dict.fromkeys(faults))
    if len(lines) == 1:
        raise ConfigError(lines[0])
    if lines:
        raise FaultsError(lines)
