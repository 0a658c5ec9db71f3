"""The config.json of a model, of which every key is used, or known to mean nothing here, or refused by name."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import InputError
from zoo.reading import read_regular

__all__ = ["Settings", "read_settings"]

_MEANINGLESS = {
    "_name_or_path", "architectures", "attention_dropout", "bos_token_id", "cache_implementation",
    "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label", "initializer_range", "label2id",
    "max_window_layers", "model_type", "output_attentions", "output_hidden_states", "pad_token_id", "problem_type",
    "return_dict", "torch_dtype", "transformers.js_config", "transformers_version", "use_cache", "is_llama_config",
    "unk_token_id",
}  # fmt: skip
"""Of training, of text and of files: no output of a trained model depends on them."""

_REQUIRED = object()


class Settings:
    """The values of a config.json.

    Args:
        values: as they stand there.
        source: the file, for errors.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source = dict(values), source
        self._known = set(_MEANINGLESS)

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a value; what is missing or null is the default.

        Raises:
            InputError: there is neither.
        """
        self._known.add(name)
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise InputError(f"{self.source}: {name}: missing")
        return default

    def rename(self, old: str, new: str) -> None:
        """Read an older name of a key, where the newer one is absent."""
        value = self.values.pop(old, None)
        if value is not None:
            self.values.setdefault(new, value)

    def expect(self, name: str, *allowed: Any) -> None:
        """Check a value that a zoo model has no setting for: it is absent, null or one of these.

        Raises:
            InputError: it is another.
        """
        self._known.add(name)
        value = self.values.get(name)
        if value is not None and value not in allowed:
            raise InputError(
                f"{self.source}: {name}: expected {' or '.join(map(repr, allowed)) or 'none'}, all that a zoo model "
                f"can be, was {value!r}"
            )

    def ignore(self, names: Iterable[str]) -> None:
        """Note keys on which no output of a trained model depends."""
        self._known.update(names)

    def finish(self) -> None:
        """Check that no key was left unread.

        Raises:
            InputError: one was; what it means is not known.
        """
        for name in sorted(self.values.keys() - self._known):
            raise InputError(f"{self.source}: {name}: unknown key, so that what the model computes is not known either")


def read_settings(folder: Path) -> Settings:
    """Read a folder's config.json.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / "config.json"
    try:
        values = json.loads(read_regular(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected an object of settings, was {type(values).__name__}")
    return Settings(values, str(path))
