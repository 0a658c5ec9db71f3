"""A corpus: text or shards, split by document into training and validation tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from zoo.data.shards import hash_tokens, open_shard, split_shards
from zoo.data.sources import find_files, read_documents
from zoo.data.stream import TokenStream
from zoo.data.tokenizer import RawTokens, Tokenizer, load_tokenizer, pack_documents
from zoo.errors import CorpusError
from zoo.recipe.data import DataConfig

__all__ = ["Corpus", "load_corpus", "read_text", "split_documents"]

# Enough for a fair share of a single file on either side, few enough to leave long stretches whole.
_BLOCKS = 64


@dataclass(frozen=True)
class Corpus:
    """Tokens to train and to validate on."""

    train: TokenStream
    validation: TokenStream
    hash: str
    """sha256 of the text (of the ids, for shards) before the split, as hexadecimal; paths do not enter it."""
    vocab_size: int
    """Every id is below it; a model's vocabulary is at least as large."""
    tokenizer: Tokenizer


def load_corpus(config: DataConfig) -> Corpus:
    """Read, split and tokenize what `config` names. Token shards stay on disk, memory-mapped.

    Shards are read through once, to check every id and to hash them.

    Raises:
        CorpusError: the source is missing, unreadable, empty or too small to split, mixes text and shards, or holds an
            id outside the vocabulary.
        ConfigError: the tokenizer cannot be loaded.
    """
    paths = find_files(config.source)
    if _are_shards(paths, config.source):
        return _load_shards(paths, config)
    if config.tokenizer == "none":
        raise CorpusError(f"data.tokenizer: 'none' is for *.bin token shards, but {config.source!r} is text")
    documents = _read_documents(paths, config.source)
    training, validation = split_documents(documents, config.validation_fraction)
    tokenizer = load_tokenizer(config.tokenizer, config.document_token)
    return Corpus(
        train=TokenStream([pack_documents(training, tokenizer)], tokenizer.separator, name="training data"),
        validation=TokenStream([pack_documents(validation, tokenizer)], tokenizer.separator, name="validation data"),
        hash=_hash_documents(documents),
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer,
    )


def read_text(source: str) -> list[bytes]:
    """Return the documents of `source`, which is what a recipe's `data.source` is, but for token shards.

    Raises:
        CorpusError: the source is missing, unreadable or holds no text.
    """
    paths = find_files(source)
    if _are_shards(paths, source):
        raise CorpusError(f"data.source: expected text, but {source!r} is token shards (*.bin)")
    return _read_documents(paths, source)


def split_documents(documents: Sequence[bytes], fraction: float) -> tuple[list[bytes], list[bytes]]:
    """Return (training, validation) documents, each in the order given.

    Which side a document falls on depends on the contents alone: in the order of their sha256, documents are held back
    as long as they fit into `fraction` of all bytes; if not one fits, the smallest is. A lone document is first cut at
    line ends (between characters if it is one line) into about 64 blocks, and neighbours that fall on the same side are
    joined again.

    Args:
        documents: none of them empty.
        fraction: share of the bytes to hold back, between 0 and 1.

    Raises:
        CorpusError: there are no documents, or nothing but a single character.
    """
    if len(documents) != 1:
        held_back = _held_back(documents, fraction)
        training = [document for index, document in enumerate(documents) if index not in held_back]
        return training, [document for index, document in enumerate(documents) if index in held_back]
    blocks = _cut_blocks(documents[0])
    held_back = _held_back(blocks, fraction)
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    for is_held_back, indices in groupby(range(len(blocks)), key=held_back.__contains__):
        sides[is_held_back].append(b"".join(blocks[index] for index in indices))
    return sides


def _held_back(documents: Sequence[bytes], fraction: float) -> set[int]:
    if len(documents) < 2:
        raise CorpusError(f"data.source: {sum(map(len, documents))} bytes of text are too few to hold some back")
    budget = fraction * sum(map(len, documents))
    chosen = set()
    for index in sorted(range(len(documents)), key=lambda index: (hashlib.sha256(documents[index]).digest(), index)):
        if len(documents[index]) <= budget:
            chosen.add(index)
            budget -= len(documents[index])
    return chosen or {min(range(len(documents)), key=lambda index: (len(documents[index]), documents[index]))}


def _cut_blocks(text: bytes) -> list[bytes]:
    size = max(1, len(text) // _BLOCKS)
    blocks, start = [], 0
    while start < len(text):
        end = text.find(b"\n", start + size - 1) + 1 or len(text)
        blocks.append(text[start:end])
        start = end
    if len(blocks) > 1:
        return blocks
    characters = text.decode()  # one line, which a cut may not leave as invalid UTF-8
    return [characters[start : start + size].encode() for start in range(0, len(characters), size)]


def _are_shards(paths: Sequence[Path], source: str) -> bool:
    shards = sum(path.suffix == ".bin" for path in paths)
    if 0 < shards < len(paths):
        raise CorpusError(
            f"data.source: {source!r} mixes token shards (*.bin) and other files; name one kind by a glob"
        )
    return shards > 0


def _read_documents(paths: Sequence[Path], source: str) -> list[bytes]:
    documents = read_documents(paths)
    if not documents:
        raise CorpusError(f"data.source: {source!r} holds no UTF-8 text")
    return documents


def _load_shards(paths: Sequence[Path], config: DataConfig) -> Corpus:
    tokenizer: Tokenizer
    if config.vocab_size is not None:
        tokenizer = RawTokens(config.vocab_size, config.document_token)
    else:
        tokenizer = load_tokenizer(config.tokenizer, config.document_token)
    shards = [open_shard(path) for path in paths]
    digest = hash_tokens(TokenStream(shards), tokenizer.vocab_size)
    training, validation = split_shards(paths, shards, config.validation_fraction, tokenizer.separator)
    return Corpus(training, validation, digest, tokenizer.vocab_size, tokenizer)


def _hash_documents(documents: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document).to_bytes(8, "little"))  # moving text from one file to the next is another corpus
        digest.update(document)
    return digest.hexdigest()
