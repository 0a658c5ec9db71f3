"""Documents as one row of tokens: in memory, or, where there are many, in a temporary file."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.data.pieces import Text, text_pieces
from zoo.data.tokenizer import Tokenizer
from zoo.errors import CorpusError

__all__ = ["pack_documents"]

_IN_MEMORY = 2**25  # bytes of text
_PIECE = 2**22


def pack_documents(documents: Sequence[Text], tokenizer: Tokenizer) -> NDArray[np.uint16]:
    """Return the tokens of `documents` one after the other, each started by the tokenizer's separator, `[n]` uint16.

    Those of more than 32 MiB of text are memory-mapped from a temporary file, which is gone with the process. A
    document of more than 4 MiB is tokenized in pieces of that size, cut at a line end where there is one: tokenizers
    take many times a text's size.

    Raises:
        CorpusError: the temporary file cannot be written.
    """
    if sum(map(len, documents)) <= _IN_MEMORY:
        return np.concatenate([np.zeros(0, np.uint16), *_parts(documents, tokenizer)])
    try:
        with tempfile.TemporaryFile() as file:
            for part in _parts(documents, tokenizer):
                file.write(part.data)
            file.flush()
            return np.memmap(file, dtype=np.uint16, mode="r")
    except OSError as error:
        where = tempfile.gettempdir()
        raise CorpusError(f"data.source: tokens cannot be kept in {where} (TMPDIR): {error.strerror}") from error


def _parts(documents: Iterable[Text], tokenizer: Tokenizer) -> Iterator[NDArray[np.uint16]]:
    start = np.array([] if tokenizer.separator is None else [tokenizer.separator], dtype=np.uint16)
    for document in documents:
        yield start
        for piece in text_pieces(document, _PIECE):
            yield tokenizer.encode(piece).astype(np.uint16)
