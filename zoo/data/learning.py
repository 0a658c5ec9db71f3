"""A byte-pair tokenizer for a corpus, learned from the text that is trained on, with constant memory."""

from collections.abc import Iterator
from typing import NamedTuple

from zoo.data.bpe import BytePairTokenizer
from zoo.data.corpus import open_source
from zoo.data.pieces import cut_pieces
from zoo.data.progress import telling
from zoo.data.reading import CorpusReader
from zoo.recipe.data import DataConfig

__all__ = ["Learned", "learn_byte_pairs"]

_PIECE = 2**20
_HELD_BACK = 2**23  # bytes of held back text, on which the outcome is measured


class Learned(NamedTuple):
    """A tokenizer and what it comes to."""

    tokenizer: BytePairTokenizer
    text_bytes: int
    """Of the text that it was learned from."""
    bytes_per_token: float
    """In text that was held back."""


def learn_byte_pairs(config: DataConfig, vocab_size: int, byte_limit: int) -> Learned:
    """Learn byte pairs from the training side of a text.

    Args:
        config: names the text and the share of it that is held back.
        vocab_size: ids at most.
        byte_limit: of a longer text, about so many bytes are learned from, spread evenly over it.

    Raises:
        CorpusError: there is no text, or too little to hold some back.
        InputError: `vocab_size` is out of range.
    """
    documents = open_source(config)
    survey = documents.survey()
    text_bytes = sum(survey.sizes)
    with telling("reading text", text_bytes) as advance:
        reader = CorpusReader(documents, survey, config.validation_fraction, advance)
        sample = _Sample(reader, byte_limit / (text_bytes * (1 - config.validation_fraction)))
        tokenizer = BytePairTokenizer.train(sample, vocab_size)
    tokens = sum(len(tokenizer.encode(piece)) for piece in sample.held_back)  # one at a time, for the memory
    return Learned(tokenizer, sample.taken, sum(map(len, sample.held_back)) / tokens)


class _Sample:
    """Pieces of the training text, spread over all of it; the beginning of the text that is held back is kept."""

    def __init__(self, reader: CorpusReader, share: float) -> None:
        self._reader, self._share = reader, share
        self.taken = 0
        self.held_back: list[bytes] = []

    def __iter__(self) -> Iterator[bytes]:
        seen = kept = 0
        for document in self._reader:
            for piece in cut_pieces(document.chunks, _PIECE):
                if not document.is_held_back:
                    if self.taken <= self._share * seen:
                        self.taken += len(piece)
                        yield piece
                    seen += len(piece)
                elif kept < _HELD_BACK:
                    kept += len(piece)
                    self.held_back.append(piece)
