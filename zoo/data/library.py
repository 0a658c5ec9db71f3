"""Any tokenizer.json through the optional `tokenizers` library: data in its own format, no code."""

import copy
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from zoo.data.stream import Counted, Ids, TokenStream, id_array, id_dtype
from zoo.errors import ConfigError
from zoo.reading import hash_document, read_regular

try:
    import tokenizers
except ImportError as error:
    raise ConfigError("data.tokenizer: the file needs an optional library: pip install 'mixer-zoo[hf]'") from error

__all__ = ["DOCUMENT", "FileTokenizer"]

DOCUMENT = "<|document|>"
_DOCUMENT_NAMES = (
    DOCUMENT, "<|endoftext|>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "<s>", "[CLS]",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<eos>", "</s>", "[SEP]",
)  # fmt: skip
"""What starts documents: ours; GPT-2's and Qwen's; Llama 3's; ...; then what ends them elsewhere, as in T5."""

_PROBES = {
    "capital letters": "Ab aB",
    "runs of spaces": "a  b   c",
    "line ends": "a\nb\r\nc\n",
    "tabs": "a\tb",
    "composed and decomposed accents": "\u00e9 e\u0301 \ufb01",
    "symbols": "\U0001f600 \x00",
}
"""What tokenizers lose, by what it is called."""

_SAMPLE = "Ab  c\n\t\u00e9e\u0301 \ufb01 \U0001f600\x00"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how SentencePiece spells a byte
_CHUNK = 2**22
_CUT = "\ue000<cut>\ue000"  # of private use, and in no text
_NO_PART_OF_A_HASH = ("version", "truncation", "padding")  # of what a file says, these are not about tokens


class FileTokenizer:
    """The tokenizer that a tokenizer.json describes: byte pairs, WordPiece, Unigram, with byte fallback or without.

    Args:
        backend: the tokenizer of the `tokenizers` library. It is set to encode all of a text as text: what looks like a
            separator inside a document starts no document.
        separator: the id that starts a document; by default that of the first token there is of `<|document|>`,
            `<|endoftext|>`, `<|begin_of_text|>`, `<bos>`, `<s>`, `[CLS]`, `</s>` and the like.
        description: what its file holds, which its hash is of; by default as the library would write it.

    Raises:
        ConfigError: it has no tokens, or no separator, or the one that is asked for is none of its ids.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, separator: int | None = None, description: bytes | None = None
    ) -> None:
        described = json.loads(backend.to_str() if description is None else description)
        self.hash = hash_document({key: described[key] for key in described if key not in _NO_PART_OF_A_HASH})
        """sha256 of what the file says, as hexadecimal; how it is laid out does not enter."""
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        self.separator: int = _separator(vocabulary, self.vocab_size, separator)
        self._name = backend.id_to_token(self.separator) or ""
        self._dtype = id_dtype(self.vocab_size)
        lengths = self._spelled(vocabulary)
        ids = self.encode(_SAMPLE)
        self.knows_bytes: bool = self.decode(ids) == _SAMPLE and lengths[ids].sum() == len(_SAMPLE.encode())
        """Whether every id always stands for the same bytes, so that the ids alone tell how many a text has."""
        self.byte_lengths: NDArray[np.int64] | NDArray[np.float64] = (
            lengths if self.knows_bytes else self._decoded_lengths(vocabulary)
        )
        self.losses: tuple[str, ...] = tuple(
            name for name, text in _PROBES.items() if self.decode(self.encode(text)) != text
        )
        """What of a text does not come back from its tokens, in words; empty where all of it does."""

    @classmethod
    def load(cls, path: str | os.PathLike[str], separator: int | None = None) -> Self:
        """Return the tokenizer in the tokenizer.json at `path`; `separator` as for the class.

        Raises:
            ConfigError: the file is no tokenizer.json, or the class refuses it.
        """
        try:
            content = read_regular(Path(path))
            backend = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exceptions
            raise ConfigError(f"data.tokenizer: {os.fspath(path)!r} is no tokenizer.json: {error}") from error
        return cls(backend, separator, content)

    def encode(self, text: str | bytes) -> NDArray[np.int64]:
        """Return the ids of `text`, `[n]` int64, without a separator; bytes that are not UTF-8 become U+FFFD."""
        return self._ids([text])[0].astype(np.int64)

    def encode_batch(self, texts: Sequence[bytes]) -> list[NDArray[np.unsignedinteger]]:
        """Return the ids of each text, `[n]` uint16 or uint32 as the vocabulary asks for."""
        return self._ids(texts)

    def encode_counted(self, texts: Sequence[bytes]) -> list[Counted]:
        """Return for each text its ids and how many of its bytes fall to each.

        The counts of a text are the bytes of it, whatever the tokenizer makes of them: what it drops falls to the
        token after it, at the end to the last one, and a character that is spelled in several tokens to the first.
        """
        strings = [_text(text) for text in texts]
        encodings = self._backend.encode_batch(strings, add_special_tokens=False)
        return [
            self._counted_apart(text)
            if self.separator in encoding.ids and len(self._name) > 1
            else Counted(np.array(encoding.ids, dtype=self._dtype), _byte_counts(text, encoding.offsets))
            for text, encoding in zip(strings, encodings, strict=True)
        ]

    def _ids(self, texts: Sequence[str | bytes]) -> list[NDArray[np.unsignedinteger]]:
        strings = [_text(text) for text in texts]
        rows = [
            np.array(encoding.ids, dtype=self._dtype)
            for encoding in self._backend.encode_batch_fast(strings, add_special_tokens=False)
        ]
        return [
            self._counted_apart(text).ids if (ids == self.separator).any() and len(self._name) > 1 else ids
            for text, ids in zip(strings, rows, strict=True)
        ]

    def _counted_apart(self, text: str) -> Counted:
        """Encode a text that spells the separator, which a Unigram model takes for it, cut in the middle of that."""
        parts = text.replace(self._name, f"{self._name[0]}{_CUT}{self._name[1:]}").split(_CUT)
        encodings = self._backend.encode_batch(parts, add_special_tokens=False)
        return Counted(
            np.concatenate([np.array(encoding.ids, dtype=self._dtype) for encoding in encodings]),
            np.concatenate(
                [_byte_counts(part, encoding.offsets) for part, encoding in zip(parts, encodings, strict=True)]
            ),
        )

    def decode(self, ids: Ids) -> str:
        """Return the text of `ids`; separators are dropped and bytes that are not UTF-8 become U+FFFD.

        Raises:
            InputError: an id is not below `vocab_size`, or `ids` is not one-dimensional.
        """
        array = id_array(ids, self.vocab_size)
        return self._backend.decode(array[array != self.separator].tolist(), skip_special_tokens=False)

    def decode_after(self, before: Ids, ids: Ids) -> str:
        """Return what `ids` add to the text of `before`; by itself their text may lose the space that it begins with.

        Raises:
            InputError: as `decode`.
        """
        start = self.decode(before)
        whole = self.decode([*id_array(before, self.vocab_size), *id_array(ids, self.vocab_size)])
        return whole.removeprefix(start) if whole.startswith(start) else self.decode(ids)

    def measured_on(self, stream: TokenStream) -> Self:
        """Return a tokenizer whose `byte_lengths` are what each id stands for on average in a text that is counted."""
        seen, total = np.zeros(self.vocab_size, dtype=np.int64), np.zeros(self.vocab_size)
        for start in range(0, len(stream), _CHUNK):
            ids = stream[start : start + _CHUNK].astype(np.int64)
            seen += np.bincount(ids, minlength=self.vocab_size)
            if stream.byte_counts is not None:
                counts = stream.byte_counts[start : start + _CHUNK]
                total += np.bincount(ids, weights=counts, minlength=self.vocab_size)
        measured = copy.copy(self)
        measured.byte_lengths = np.where(seen > 0, total / np.maximum(seen, 1), self.byte_lengths)
        return measured

    def _spelled(self, vocabulary: dict[str, int]) -> NDArray[np.int64]:
        """Return the bytes of each id of a byte-level vocabulary, `[vocab_size]`."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in vocabulary.items():
            lengths[index] = len(token)  # the byte-level alphabet spells every byte as one character
        for index, added in self._backend.get_added_tokens_decoder().items():
            lengths[index] = len(added.content.encode())
        lengths[self.separator] = 0
        return lengths

    def _decoded_lengths(self, vocabulary: dict[str, int]) -> NDArray[np.int64]:
        """Return the bytes that each id stands for by itself, `[vocab_size]`, which in a text may be others."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in vocabulary.items():
            spelled = token.replace("▁", " ").removeprefix("##")
            lengths[index] = 1 if _BYTE.fullmatch(token) else len(spelled.encode())
        lengths[self.separator] = 0
        return lengths


def _separator(vocabulary: dict[str, int], vocab_size: int, stated: int | None) -> int:
    separator = stated
    if separator is None:
        separator = next((vocabulary[name] for name in _DOCUMENT_NAMES if name in vocabulary), None)
    if separator is None:
        raise ConfigError(f"data.tokenizer: no token is called {DOCUMENT}; state data.document_token")
    if separator >= vocab_size:
        raise ConfigError(f"data.document_token: expected an id below {vocab_size}, got {separator}")
    return separator


def _text(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode(errors="replace")


def _byte_counts(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.uint32]:
    """Share out the bytes of a text among tokens that end at `offsets`, in characters; `[n]`."""
    if not offsets:
        return np.zeros(0, dtype=np.uint32)
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    widths = 1 + sum((characters >= bound).astype(np.int64) for bound in (0x80, 0x800, 0x10000))
    ends_in_bytes = np.concatenate([[0], np.cumsum(widths)])
    ends = np.array([end for _, end in offsets])
    ends[-1] = len(characters)
    return np.diff(ends_in_bytes[np.maximum.accumulate(ends)], prepend=0).astype(np.uint32)
