"""One pass over documents that were surveyed before: which side each falls on, and the hash of all of them."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator

from zoo.data.documents import Document
from zoo.data.encoding import SidedDocument
from zoo.data.split import RandomText, Survey, chunks_between, split_lone_document
from zoo.errors import CorpusError

__all__ = ["CorpusReader"]

_IN_MEMORY = 2**25


class CorpusReader:
    """Reads documents for the second time, and knows their hash when it is done.

    Args:
        documents: what to read, anew at every pass.
        survey: of them.
        fraction: share of the bytes to hold back.
        advance: told how many bytes were read.

    Raises:
        CorpusError: there is too little text to hold some back.
    """

    def __init__(
        self,
        documents: Iterable[Document],
        survey: Survey,
        fraction: float,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._documents, self._survey, self._fraction, self._advance = documents, survey, fraction, advance
        self._digest = hashlib.sha256()
        self._held_back = None if len(survey) == 1 else survey.held_back(fraction)

    @property
    def hash(self) -> str:
        """sha256 of the documents that were read last, as hexadecimal; paths do not enter."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[SidedDocument]:
        """Yield each document with its side; of a lone one its stretches.

        Raises:
            CorpusError: a document is not what it was before.
        """
        self._digest = hashlib.sha256()
        count = -1
        for count, document in enumerate(self._documents):
            if count >= len(self._survey):
                break
            checked = self._checked(count, document)
            if self._held_back is None:
                yield from self._stretches(checked)
            else:
                yield SidedDocument(checked, self._survey.sizes[count], bool(self._held_back[count]))
        if count + 1 != len(self._survey):
            raise _changed()

    def _checked(self, index: int, document: Document) -> Document:
        """Yield a document's parts, and hold them to what was surveyed."""
        own, size = hashlib.sha256(), 0
        # Moving text from one document to the next makes another corpus.
        self._digest.update(self._survey.sizes[index].to_bytes(8, "little"))
        for chunk in document:
            self._digest.update(chunk)
            own.update(chunk)
            size += len(chunk)
            self._advance(len(chunk))
            yield chunk
        if not self._survey.holds(index, own.digest(), size):
            raise _changed()

    def _stretches(self, document: Document) -> Iterator[SidedDocument]:
        if self._survey.sizes[0] <= _IN_MEMORY:
            yield from self._cut(b"".join(document))
            return
        with tempfile.TemporaryFile() as file:
            for chunk in document:
                file.write(chunk)
            file.flush()
            yield from self._cut(_FileText(file.fileno(), self._survey.sizes[0]))

    def _cut(self, text: RandomText) -> Iterator[SidedDocument]:
        for part in split_lone_document(text, self._fraction):
            chunks = chunks_between(text, part.start, part.end)
            yield SidedDocument(chunks, part.end - part.start, part.is_held_back)


class _FileText:
    """A file that is read, and not mapped: pages of a map that were touched count as this process's memory."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        start, stop, _ = where.indices(self._size)
        return os.pread(self._descriptor, stop - start, start)


def _changed() -> CorpusError:
    return CorpusError("data.source: the text changed while it was read; start again when it is at rest")
