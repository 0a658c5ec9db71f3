"""Which documents are held back for validation: by what they say, so that it is the same everywhere."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from zoo.errors import CorpusError

__all__ = ["LonePart", "RandomText", "Survey", "chunks_between", "split_documents", "split_lone_document"]

# Enough for a fair share of a single file on either side, few enough to leave long stretches whole.
_BLOCKS = 64
_CHUNK = 2**20
_DIGEST = 16  # bytes of a sha256 that are kept of each document


class Survey:
    """What the split needs of documents: 24 bytes of memory each, whatever their sizes."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._sizes = array("Q")

    @classmethod
    def of(cls, documents: Iterable[Iterable[bytes]], advance: Callable[[int], None] = lambda _: None) -> "Survey":
        """Return the survey of documents that come in parts, none of them empty; `advance` is told the bytes read."""
        survey = cls()
        for document in documents:
            digest, size = hashlib.sha256(), 0
            for part in document:
                digest.update(part)
                size += len(part)
            advance(size)
            survey.add(digest.digest(), size)
        return survey

    def add(self, digest: bytes, size: int) -> None:
        """Take down a document: its sha256 and its bytes."""
        self._digests += digest[:_DIGEST]
        self._sizes.append(size)

    def only(self, kept: NDArray[np.bool_]) -> "Survey":
        """Return what is known of the documents that are `kept` `[n]`."""
        survey = Survey()
        for index in np.flatnonzero(kept).tolist():
            survey.add(bytes(self._digests[index * _DIGEST :][:_DIGEST]), self._sizes[index])
        return survey

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each document."""
        return self._sizes

    @property
    def hash(self) -> str:
        """sha256 that tells lists of documents from one another, as hexadecimal."""
        return hashlib.sha256(self._digests + self._sizes.tobytes()).hexdigest()

    def holds(self, index: int, digest: bytes, size: int) -> bool:
        """Whether document `index` is the one with this sha256 and size."""
        start = index * _DIGEST
        return self._sizes[index] == size and self._digests[start : start + _DIGEST] == digest[:_DIGEST]

    def copies(self) -> int:
        """How many documents are copies of an earlier one."""
        return len(self) - len(self._contents()[1])

    def held_back(self, fraction: float) -> NDArray[np.bool_]:
        """Return which documents are held back `[n]`, copies of one together unless there is nothing else.

        In the order of their sha256 they are held back as long as they fit into `fraction` of all bytes; if not one
        fits, the smallest is.

        Raises:
            CorpusError: there are fewer than two documents.
        """
        order, starts = self._contents()
        if len(starts) < 2:
            return self.held_back_apart(fraction)
        return self._choose(order, starts, fraction)

    def held_back_apart(self, fraction: float) -> NDArray[np.bool_]:
        """`held_back`, where copies have nothing to do with one another."""
        order, _ = self._contents()
        return self._choose(order, np.arange(len(self)), fraction)

    def _contents(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Documents in the order of their digests `[n]`, and where in it each content starts `[contents]`."""
        digests = np.frombuffer(bytes(self._digests), dtype=">u8").reshape(-1, 2)
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        is_new = np.ones(len(order), dtype=np.bool_)
        is_new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
        return order, np.flatnonzero(is_new)

    def _choose(self, order: NDArray[np.int64], starts: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
        sizes = np.frombuffer(self._sizes, dtype=np.uint64).astype(np.int64)
        if len(starts) < 2:
            raise CorpusError(f"data.source: {sizes.sum()} bytes of text are too few to hold some back")
        group_sizes = np.add.reduceat(sizes[order], starts)
        budget, smallest = fraction * int(sizes.sum()), int(group_sizes.min())
        chosen = np.zeros(len(starts), dtype=np.bool_)
        for group, size in enumerate(group_sizes.tolist()):
            if budget < smallest:
                break
            if size <= budget:
                chosen[group] = True
                budget -= size
        if not chosen.any():
            chosen[group_sizes.argmin()] = True
        held_back = np.zeros(len(order), dtype=np.bool_)
        held_back[order] = np.repeat(chosen, np.diff(starts, append=len(order)))
        return held_back


class RandomText(Protocol):
    """A text that is read from any place, such as bytes or a file."""

    def __len__(self) -> int:
        """Bytes of UTF-8."""

    def __getitem__(self, where: slice) -> bytes:
        """Some of them."""


def chunks_between(text: RandomText, start: int, end: int) -> Iterator[bytes]:
    """Yield what stands from `start` to `end`, at most 1 MiB at a time."""
    return (text[at : min(at + _CHUNK, end)] for at in range(start, end, _CHUNK))


class LonePart(NamedTuple):
    """A stretch of a lone document that falls on one side."""

    start: int
    end: int
    is_held_back: bool


def split_lone_document(text: RandomText, fraction: float) -> list[LonePart]:
    """Cut a document of UTF-8 at line ends (between characters if it is one line) into about 64 blocks and split them.

    Neighbours that fall on the same side are one part.

    Raises:
        CorpusError: it is a single character.
    """
    ends = _block_ends(text)
    bounds = list(zip([0, *ends[:-1]], ends, strict=True))
    held_back = Survey.of(chunks_between(text, *bound) for bound in bounds).held_back_apart(fraction)
    parts = []
    for is_held_back, group in groupby(zip(bounds, held_back.tolist(), strict=True), key=lambda block: block[1]):
        blocks = [bound for bound, _ in group]
        parts.append(LonePart(blocks[0][0], blocks[-1][1], is_held_back))
    return parts


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
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    if len(documents) == 1:
        for part in split_lone_document(documents[0], fraction):
            sides[part.is_held_back].append(documents[0][part.start : part.end])
        return sides
    held_back = Survey.of([document] for document in documents).held_back(fraction)
    for document, is_held_back in zip(documents, held_back, strict=True):
        sides[bool(is_held_back)].append(document)
    return sides


def _block_ends(text: RandomText) -> list[int]:
    """Where to cut a lone document: at line ends, or, if it is one line, between characters."""
    size = max(1, len(text) // _BLOCKS)
    ends = [0]
    while ends[-1] < len(text):
        ends.append(_line_end(text, ends[-1] + size - 1))
    if len(ends) > 2:
        return ends[1:]
    ends = [0]
    while ends[-1] < len(text):
        end = ends[-1] + size
        while end < len(text) and text[end : end + 1][0] & 0xC0 == 0x80:  # inside a character of UTF-8
            end += 1
        ends.append(min(end, len(text)))
    return ends[1:]


def _line_end(text: RandomText, start: int) -> int:
    """The first place after a line end from `start` on."""
    for chunk in chunks_between(text, start, len(text)):
        if (found := chunk.find(b"\n")) >= 0:
            return start + found + 1
        start += len(chunk)
    return len(text)
