"""Documents by their length in tokens: which are long enough, and those alone read anew at every pass."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from zoo.data.documents import Document
from zoo.data.encoding import SidedDocument, encode_documents
from zoo.data.tokenizer import TextTokenizer
from zoo.errors import ConfigError

__all__ = ["SomeDocuments", "long_documents"]


class SomeDocuments:
    """Those of `documents` that are `kept` `[n]`, in their order."""

    def __init__(self, documents: Iterable[Document], kept: NDArray[np.bool_]) -> None:
        self._documents, self._kept = documents, kept

    def __iter__(self) -> Iterator[Document]:
        return compress(self._documents, self._kept)


def long_documents(
    documents: Iterable[Document], sizes: Sequence[int], tokenizer: TextTokenizer, minimum: int, processes: int
) -> NDArray[np.bool_]:
    """Return which documents have at least `minimum` tokens `[n]`, what starts them not counted.

    Args:
        documents: read once.
        sizes: bytes of each.
        tokenizer: theirs, which has to start documents with a token.
        minimum: tokens.
        processes: that tokenize those whose bytes do not tell.

    Raises:
        ConfigError: the tokenizer does not mark where documents start.
    """
    if tokenizer.separator is None:
        raise ConfigError("minimum_tokens: needs a tokenizer that starts documents; name one by data.document_token")
    kept = np.zeros(len(sizes), dtype=np.bool_)
    doubtful: list[int] = []
    # A token is a byte at least and the vocabulary's longest at most, where tokens stand for known bytes.
    is_known, longest = tokenizer.knows_bytes, float(tokenizer.byte_lengths.max())

    def to_count() -> Iterator[SidedDocument]:
        for index, document in enumerate(documents):
            if is_known and (sizes[index] < minimum or sizes[index] >= minimum * longest):
                kept[index] = sizes[index] >= minimum
            else:
                doubtful.append(index)
                yield SidedDocument(document, sizes[index], is_held_back=False)

    counts: list[int] = []
    for encoded in encode_documents(to_count(), tokenizer, processes):
        starts = np.flatnonzero(encoded.ids == tokenizer.separator)
        before, *own = np.diff([0, *starts, len(encoded.ids)]).tolist()
        if counts:
            counts[-1] += before
        counts += [tokens - 1 for tokens in own]
    kept[doubtful] = np.array(counts, dtype=np.int64) >= minimum
    return kept
