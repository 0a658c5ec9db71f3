"""Byte-pair tokenizers of one's own, learned from text."""

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Self

from zoo.data.library import DOCUMENT, FileTokenizer  # which says so where the library below is missing
from zoo.data.pieces import Text, text_pieces
from zoo.errors import ConfigError, CorpusError, InputError
from zoo.report.files import replace_file

import tokenizers  # isort: skip

__all__ = ["BytePairTokenizer"]

_LARGEST_VOCABULARY = 2**20
_PIECE = 2**20


class BytePairTokenizer(FileTokenizer):
    """A byte-level byte-pair tokenizer: any text round-trips, and every token stands for a known number of bytes.

    Args and errors are those of `FileTokenizer`.

    Raises:
        ConfigError: text does not round-trip through it byte by byte.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, separator: int | None = None, description: bytes | None = None
    ) -> None:
        super().__init__(backend, separator, description)
        if not self.knows_bytes:
            raise ConfigError("data.tokenizer: expected byte-level byte pairs, but text does not round-trip through it")

    @classmethod
    def train(cls, documents: Iterable[Text], vocab_size: int) -> Self:
        """Return a tokenizer of at most `vocab_size` ids whose merges are learned from `documents` (UTF-8).

        `training, _ = split_documents(read_text(source), validation_fraction)` are the documents that a corpus trains
        on. `zoo tokenizer train` does that and saves the outcome.

        Args:
            documents: the training side of a corpus, so that validation text stays unseen.
            vocab_size: from 257 (bytes and separator) to 1,048,576; fewer come out if there are no more pairs to merge.

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
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[DOCUMENT],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
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
