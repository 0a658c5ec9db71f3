"""A corpus: text or shards, split by document into training and validation tokens."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from zoo.data.packing import pack_documents
from zoo.data.pieces import Text
from zoo.data.shards import hash_tokens, open_shard, split_shards
from zoo.data.sources import find_files, read_documents
from zoo.data.stream import TokenStream
from zoo.data.tokenizer import RawTokens, Tokenizer, load_tokenizer
from zoo.errors import CorpusError
from zoo.recipe.data import DataConfig

__all__ = ["Corpus", "load_corpus", "read_text", "split_documents", "split_texts"]

_logger = logging.getLogger(__name__)

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
    copies: int = 0
    """Documents that are copies of an earlier one; they fall on its side of the split. Not counted in shards."""


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
    tokenizer = load_tokenizer(config.tokenizer, config.document_token)
    documents = _read_documents(paths, config.source, config.encoding)
    training, validation = split_texts(documents, config.validation_fraction)
    return Corpus(
        train=TokenStream([pack_documents(training, tokenizer)], tokenizer.separator, name="training data"),
        validation=TokenStream([pack_documents(validation, tokenizer)], tokenizer.separator, name="validation data"),
        hash=_hash_documents(documents),
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer,
        copies=len(documents) - len(set(documents)),
    )


def read_text(source: str, encoding: str = "utf-8") -> list[bytes]:
    """Return the documents of `source`, which is what a recipe's `data.source` is, but for token shards, as UTF-8.

    Raises:
        CorpusError: the source is missing, unreadable or holds no text.
    """
    paths = find_files(source)
    if _are_shards(paths, source):
        raise CorpusError(f"data.source: expected text, but {source!r} is token shards (*.bin)")
    return _read_documents(paths, source, encoding)


def split_documents(documents: Sequence[bytes], fraction: float) -> tuple[list[bytes], list[bytes]]:
    """Return (training, validation) documents, each in the order given.

    Which side a document falls on depends on the contents alone: in the order of their sha256, documents are held back
    as long as they fit into `fraction` of all bytes; if not one fits, the smallest is. Copies of one document fall on
    one side together. A lone document is first cut at line ends (between characters if it is one line) into about 64
    blocks, and neighbours that fall on the same side are joined again.

    Args:
        documents: none of them empty.
        fraction: share of the bytes to hold back, between 0 and 1.

    Raises:
        CorpusError: there are no documents, or nothing but a single character.
    """
    training, validation = split_texts(documents, fraction)
    return [bytes(document) for document in training], [bytes(document) for document in validation]


def split_texts(documents: Sequence[bytes], fraction: float) -> tuple[list[Text], list[Text]]:
    """`split_documents`, of which parts of a lone document are views: a copy of them would double a large text."""
    sides: tuple[list[Text], list[Text]] = ([], [])
    if len(documents) != 1:
        copies = _copies(documents)
        # Nothing but copies of one document has to do with it on both sides.
        held_back = _held_back(documents, copies if len(copies) > 1 else _apart(copies), fraction)
        for index, document in enumerate(documents):
            sides[index in held_back].append(document)
        return sides
    text, ends = memoryview(documents[0]), _block_ends(documents[0])
    starts = [0, *ends[:-1]]
    blocks = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    held_back = _held_back(blocks, _apart(_copies(blocks)), fraction)
    for is_held_back, group in groupby(range(len(blocks)), key=held_back.__contains__):
        indices = list(group)
        sides[is_held_back].append(text[starts[indices[0]] : ends[indices[-1]]])
    return sides


def _copies(documents: Sequence[Text]) -> list[list[int]]:
    """The indices of each content, in the order of its sha256."""
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, document in enumerate(documents):
        groups[hashlib.sha256(document).digest()].append(index)
    return [groups[digest] for digest in sorted(groups)]


def _apart(groups: Sequence[list[int]]) -> list[list[int]]:
    return [[index] for group in groups for index in group]


def _held_back(documents: Sequence[Text], groups: Sequence[list[int]], fraction: float) -> set[int]:
    """The documents to hold back, of each group all or none."""
    if len(groups) < 2:
        raise CorpusError(f"data.source: {sum(map(len, documents))} bytes of text are too few to hold some back")
    sizes = [len(group) * len(documents[group[0]]) for group in groups]
    budget = fraction * sum(sizes)
    chosen: set[int] = set()
    for group, size in zip(groups, sizes, strict=True):
        if size <= budget:
            chosen.update(group)
            budget -= size
    smallest = min(groups, key=lambda group: (len(group) * len(documents[group[0]]), bytes(documents[group[0]])))
    return chosen or set(smallest)


def _block_ends(text: bytes) -> list[int]:
    """Where to cut a lone document: at line ends, or, if it is one line, between characters."""
    size = max(1, len(text) // _BLOCKS)
    ends = [0]
    while ends[-1] < len(text):
        ends.append(text.find(b"\n", ends[-1] + size - 1) + 1 or len(text))
    if len(ends) > 2:
        return ends[1:]
    ends = [0]
    while ends[-1] < len(text):
        end = ends[-1] + size
        while end < len(text) and text[end] & 0xC0 == 0x80:  # inside a character of UTF-8
            end += 1
        ends.append(min(end, len(text)))
    return ends[1:]


def _are_shards(paths: Sequence[Path], source: str) -> bool:
    shards = sum(path.suffix == ".bin" for path in paths)
    if 0 < shards < len(paths):
        raise CorpusError(
            f"data.source: {source!r} mixes token shards (*.bin) and other files; name one kind by a glob"
        )
    return shards > 0


def _read_documents(paths: Sequence[Path], source: str, encoding: str) -> list[bytes]:
    documents, left_out = read_documents(paths, encoding)
    if not documents:
        raise CorpusError(f"data.source: {source!r} holds no {encoding.upper()} text (data.encoding)")
    if left_out:
        _logger.warning(
            "data.source: left out %d of %d files that are no %s text (data.encoding names another encoding)",
            left_out, left_out + len(documents), encoding.upper(),
        )  # fmt: skip
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
