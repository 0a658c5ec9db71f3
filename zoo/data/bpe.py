"""Byte-pair tokens through the optional `tokenizers` library, kept in its own tokenizer.json (data, no code)."""

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from zoo.data.pieces import Text, text_pieces
from zoo.data.stream import Ids, id_array
from zoo.errors import ConfigError, CorpusError, InputError
from zoo.reading import read_regular
from zoo.report.files import replace_file

try:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
except ImportError as error:
    raise ConfigError("data.tokenizer: byte pairs need an optional library: pip install 'mixer-zoo[hf]'") from error

__all__ = ["BytePairTokenizer"]

DOCUMENT = "<|document|>"
_DOCUMENT_NAMES = (DOCUMENT, "<|endoftext|>", "<|begin_of_text|>")  # ours, GPT-2's, Llama 3's
_LARGEST_VOCABULARY = 2**16
_PIECE = 2**20
# What tokenizers that lose text trip over: case, runs of spaces, line ends, composed and decomposed accents, symbols.
_SAMPLE = "Ab  c\n\t\u00e9e\u0301 \ufb01 \U0001f600\x00"


class BytePairTokenizer:
    """A byte-level byte-pair tokenizer: any text round-trips, and every token stands for a known number of bytes.

    Args:
        backend: the tokenizer of the `tokenizers` library. It is set to encode all of a text as text: what looks like a
            separator inside a document starts no document.
        separator: the id that starts a document; by default that of `<|document|>`, `<|endoftext|>` or
            `<|begin_of_text|>`, whichever comes first.

    Raises:
        ConfigError: text does not round-trip through `backend` byte by byte, its ids do not fit uint16, or it has no
            separator.
    """

    def __init__(self, backend: tokenizers.Tokenizer, separator: int | None = None) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        if self.vocab_size > _LARGEST_VOCABULARY:
            raise ConfigError(f"data.tokenizer: {self.vocab_size} ids do not fit uint16, which holds 65536")
        if separator is None:
            separator = next((vocabulary[name] for name in _DOCUMENT_NAMES if name in vocabulary), None)
        if separator is None:
            raise ConfigError(f"data.tokenizer: no token is called {DOCUMENT}; state data.document_token")
        if separator >= self.vocab_size:
            raise ConfigError(f"data.document_token: expected an id below {self.vocab_size}, got {separator}")
        self.separator: int = separator
        self._backend = backend
        self.byte_lengths: NDArray[np.int64] = self._measure(vocabulary)
        ids = self.encode(_SAMPLE)
        if self.decode(ids) != _SAMPLE or self.byte_lengths[ids].sum() != len(_SAMPLE.encode()):
            raise ConfigError("data.tokenizer: expected byte-level byte pairs, but text does not round-trip through it")

    @classmethod
    def load(cls, path: str | os.PathLike[str], separator: int | None = None) -> Self:
        """Return the tokenizer in the tokenizer.json at `path`; `separator` as for the class.

        Raises:
            ConfigError: the file is no tokenizer.json, or the class refuses it.
        """
        try:
            backend = tokenizers.Tokenizer.from_buffer(read_regular(Path(path)))
        except Exception as error:  # the library raises bare Exceptions
            raise ConfigError(f"data.tokenizer: {os.fspath(path)!r} is no tokenizer.json: {error}") from error
        return cls(backend, separator)

    @classmethod
    def train(cls, documents: Iterable[Text], vocab_size: int) -> Self:
        """Return a tokenizer of at most `vocab_size` ids whose merges are learned from `documents` (UTF-8).

        `training, _ = split_documents(read_text(source), validation_fraction)` are the documents that a corpus trains
        on. `zoo tokenizer train` does that and saves the outcome.

        Args:
            documents: the training side of a corpus, so that validation text stays unseen.
            vocab_size: from 257 (bytes and separator) to 65536; fewer come out if the text has no more pairs to merge.

        Raises:
            InputError: `vocab_size` is out of range.
            CorpusError: there are no documents.
        """
        if not 257 <= vocab_size <= _LARGEST_VOCABULARY:
            raise InputError(f"vocab_size: expected 257 to {_LARGEST_VOCABULARY}, got {vocab_size}")
        # In pieces, for the library takes some fifty times what it is given at a time.
        pieces = (piece for document in documents for piece in text_pieces(document, _PIECE))
        first = next(pieces, None)
        if first is None:
            raise CorpusError("documents: expected at least one to train a tokenizer on, got none")
        texts = (piece.decode(errors="replace") for piece in chain([first], pieces))
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[DOCUMENT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a tokenizer.json, whole or not at all.

        Raises:
            CorpusError: the file cannot be written.
        """
        replace_file(Path(path), self._backend.to_str().encode(), CorpusError)

    def encode(self, text: str | bytes) -> NDArray[np.int64]:
        """Return the ids of `text`, `[n]` int64, without a separator; bytes that are not UTF-8 become U+FFFD."""
        text = text if isinstance(text, str) else text.decode(errors="replace")
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids: Ids) -> str:
        """Return the text of `ids`; separators are dropped and bytes that are not UTF-8 become U+FFFD.

        Raises:
            InputError: an id is not below `vocab_size`, or `ids` is not one-dimensional.
        """
        array = id_array(ids, self.vocab_size)
        return self._backend.decode(array[array != self.separator].tolist(), skip_special_tokens=False)

    def _measure(self, vocabulary: dict[str, int]) -> NDArray[np.int64]:
        """Return the bytes that each id stands for, `[vocab_size]`."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in vocabulary.items():
            lengths[index] = len(token)  # the byte-level alphabet spells every byte as one character
        for index, added in self._backend.get_added_tokens_decoder().items():
            lengths[index] = len(added.content.encode())
        lengths[self.separator] = 0
        return lengths
