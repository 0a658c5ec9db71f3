"""Text as token ids: the interface, bytes as tokens, and bare ids for shards whose tokenizer is not at hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zoo.data.stream import Counted, Ids, TokenStream, id_array
from zoo.errors import ConfigError, InputError, nearest
from zoo.reading import hash_of
from zoo.recipe.data import SEPARATOR, DataConfig

__all__ = [
    "ByteTokenizer",
    "RawTokens",
    "TextTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "tokenizer_of",
]


class Tokenizer(Protocol):
    """The tokenizer that data, training and generation work with. It never adds a separator by itself."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, the separator included."""

    @property
    def separator(self) -> int | None:
        """The id that starts every document, or None where documents are not marked."""

    @property
    def byte_lengths(self) -> NDArray[np.int64] | NDArray[np.float64]:
        """Bytes of text that each id stands for, `[vocab_size]`, on average where they are not always as many; 0 for
        the separator."""

    @property
    def hash(self) -> str:
        """sha256 of all that its ids depend on, as hexadecimal; zeros where it is not known."""

    def encode(self, text: str | bytes) -> NDArray[np.int64]:
        """Return the ids of `text`, `[n]` int64."""

    def decode(self, ids: Ids) -> str:
        """Return the text of `ids` (one dimension); separators leave no trace."""


@runtime_checkable
class TextTokenizer(Tokenizer, Protocol):
    """A tokenizer that turns text into training data."""

    @property
    def knows_bytes(self) -> bool:
        """Whether `byte_lengths` are exact; else `encode_counted` tells how many bytes fall to a token."""

    @property
    def losses(self) -> tuple[str, ...]:
        """What of a text does not come back from its tokens, in words."""

    def encode_batch(self, texts: Sequence[bytes]) -> list[NDArray[np.unsignedinteger]]:
        """Return the ids of each text, `[n]` uint16 or uint32 as the vocabulary asks for."""

    def encode_counted(self, texts: Sequence[bytes]) -> list[Counted]:
        """Return the ids of each text and how many of its bytes fall to each id."""

    def decode_after(self, before: Ids, ids: Ids) -> str:
        """Return what `ids` add to the text of `before` (one dimension both)."""

    def measured_on(self, stream: TokenStream) -> "TextTokenizer":
        """Return a tokenizer whose `byte_lengths` are what each id stands for on average in a text that is counted."""


class ByteTokenizer:
    """UTF-8 bytes as tokens: ids 0 to 255 are the bytes, 256 starts every document. Nothing to train or to install."""

    vocab_size: int = SEPARATOR + 1
    separator: int = SEPARATOR
    hash: str = hash_of(b"bytes")
    knows_bytes: bool = True
    losses: tuple[str, ...] = ()

    @property
    def byte_lengths(self) -> NDArray[np.int64]:
        """Bytes of text that each id stands for, `[257]`: one each, and none for the separator."""
        lengths = np.ones(self.vocab_size, dtype=np.int64)
        lengths[self.separator] = 0
        return lengths

    def encode(self, text: str | bytes) -> NDArray[np.int64]:
        """Return the bytes of `text` (a str is encoded as UTF-8), `[n]` int64, without a separator."""
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, dtype=np.uint8).astype(np.int64)

    def encode_batch(self, texts: Sequence[bytes]) -> list[NDArray[np.unsignedinteger]]:
        """Return the bytes of each text, `[n]` uint16."""
        return [np.frombuffer(text, dtype=np.uint8).astype(np.uint16) for text in texts]

    def encode_counted(self, texts: Sequence[bytes]) -> list[Counted]:
        """Return the bytes of each text, and one byte for each id."""
        return [Counted(ids, np.ones(len(ids), dtype=np.uint32)) for ids in self.encode_batch(texts)]

    def decode_after(self, before: Ids, ids: Ids) -> str:
        """Return the text of `ids`, whatever stands before."""
        return self.decode(ids)

    def measured_on(self, stream: TokenStream) -> "ByteTokenizer":
        """Itself: there is nothing to measure."""
        return self

    def decode(self, ids: Ids) -> str:
        """Return the text of `ids`; separators are dropped and bytes that are not UTF-8 become U+FFFD.

        Raises:
            InputError: an id is not in 0..256, or `ids` is not one-dimensional.
        """
        array = id_array(ids, self.vocab_size)
        return array[array != self.separator].astype(np.uint8).tobytes().decode(errors="replace")


class RawTokens:
    """Ids of an unknown tokenizer: their text form is the ids themselves, as numbers between spaces.

    The bytes behind an id are unknown and count as one, so what reads "bits per byte" elsewhere is bits per token here.

    Args:
        vocab_size: number of ids.
        separator: the id that starts a document, or None.
    """

    hash: str = "00" * 32

    def __init__(self, vocab_size: int, separator: int | None = None) -> None:
        self.vocab_size = vocab_size
        self.separator = separator

    @property
    def byte_lengths(self) -> NDArray[np.int64]:
        """One for every id, `[vocab_size]`; none for the separator."""
        lengths = np.ones(self.vocab_size, dtype=np.int64)
        if self.separator is not None:
            lengths[self.separator] = 0
        return lengths

    def encode(self, text: str | bytes) -> NDArray[np.int64]:
        """Return the ids written in `text`, such as "17 4 256", `[n]` int64.

        Raises:
            InputError: `text` holds anything but ids below `vocab_size`.
        """
        try:
            ids = [int(word) for word in text.split()]
        except ValueError:
            raise InputError(f"text: expected token ids between spaces (tokenizer 'none'), got {text!r:.60}") from None
        return id_array(ids, self.vocab_size)

    def decode(self, ids: Ids) -> str:
        """Return `ids` as numbers between spaces; separators are dropped.

        Raises:
            InputError: an id is not below `vocab_size`, or `ids` is not one-dimensional.
        """
        return " ".join(str(token) for token in id_array(ids, self.vocab_size) if token != self.separator)


def load_tokenizer(name: str, document_token: int | None = None) -> TextTokenizer:
    """Return the tokenizer that a recipe names.

    Args:
        name: `bytes` or the path of a tokenizer.json.
        document_token: the id that starts a document, where the file does not say it.

    Raises:
        ConfigError: `name` is neither; or the file is no tokenizer, or the `hf` extra is missing.
    """
    if name == "bytes":
        return ByteTokenizer()
    path = Path(name).expanduser()
    if not path.is_file():
        hint = nearest(name, ["bytes", "none"])
        raise ConfigError(f"data.tokenizer: {name!r} is neither 'bytes', 'none' nor a tokenizer.json file{hint}")
    from zoo.data.library import FileTokenizer  # needs the optional tokenizers library

    return FileTokenizer.load(path, document_token)


def tokenizer_of(data: DataConfig) -> Tokenizer:
    """Return the tokenizer of a recipe's data; of ids whose tokenizer is not at hand, the ids themselves.

    Raises:
        ConfigError: as `load_tokenizer`.
    """
    if data.vocab_size is not None:
        return RawTokens(data.vocab_size, data.document_token)
    return load_tokenizer(data.tokenizer, data.document_token)
