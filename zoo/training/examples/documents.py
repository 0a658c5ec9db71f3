"""Documents from their first token on, several to a row: what the loss by position is read from."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from zoo.data import TokenStream
from zoo.kernels.targets import IGNORED

__all__ = ["DocumentRows", "document_rows", "window_rows"]

_CHUNK = 2**22


class DocumentRows(NamedTuple):
    """Rows of documents, each begun by its separator and cut where it is longer than a row; zeros behind the last."""

    tokens: NDArray[np.int64]
    """`[rows, length]`."""
    targets: NDArray[np.int64]
    """`[rows, length]`: the token after each, that of a document's end being the next one's separator; -100 behind."""
    positions: NDArray[np.int64]
    """`[rows, length]`: of each target in its document, whose first token after the separator is 0; -1 behind."""

    @classmethod
    def empty(cls, rows: int, length: int) -> Self:
        """Return rows without a document."""
        tokens = np.zeros((rows, length), dtype=np.int64)
        return cls(tokens, np.full_like(tokens, IGNORED), np.full_like(tokens, -1))

    def filled_up(self, rows: int) -> "DocumentRows":
        """Return these with so many empty rows behind them."""
        empty = DocumentRows.empty(rows, self.tokens.shape[1])
        return DocumentRows(*(np.concatenate(both) for both in zip(self, empty, strict=True)))


def document_rows(stream: TokenStream, length: int, max_tokens: int) -> DocumentRows:
    """Return the documents of a stream with separators, of many every second, third or so, the same ones every time.

    Args:
        stream: what stands before its first separator is left out: nobody knows where it began.
        length: of a row, and the most that is taken of a document.
        max_tokens: of the documents together; one is taken in any case.
    """
    starts = _document_starts(stream)
    ends = np.append(starts, len(stream))[1:]
    # The stream's last token has nothing after it.
    sizes = np.minimum(np.minimum(ends, len(stream) - 1) - starts, length)
    starts, sizes = starts[sizes > 0], sizes[sizes > 0]
    every = max(1, -(-int(sizes.sum()) // max_tokens))
    starts, sizes = starts[::every], sizes[::every]
    fitting = max(1, int(np.searchsorted(sizes.cumsum(), max_tokens, side="right")))
    starts, sizes = starts[:fitting], sizes[:fitting]

    plan = _pack(sizes.tolist(), length)
    rows = DocumentRows.empty(len(plan), length)
    for row, documents in enumerate(plan):
        free = 0
        for document in documents:
            start, size = int(starts[document]), int(sizes[document])
            taken = slice(free, free + size)
            tokens = stream[start : start + size + 1]
            rows.tokens[row, taken], rows.targets[row, taken] = tokens[:-1], tokens[1:]
            rows.positions[row, taken] = np.arange(size)
            free += size
    return rows


def window_rows(stream: TokenStream, length: int, max_tokens: int) -> DocumentRows:
    """Return windows of a stream without separators, spread evenly over it: positions are those in the window."""
    available = max(1, (len(stream) - 1) // length)
    count = max(1, min(available, max_tokens // length))
    rows = DocumentRows.empty(count, length)
    for row, start in enumerate((length * (np.arange(count) * available // count)).tolist()):
        tokens = stream[start : start + length + 1]
        size = len(tokens) - 1
        rows.tokens[row, :size], rows.targets[row, :size] = tokens[:-1], tokens[1:]
        rows.positions[row, :size] = np.arange(size)
    return rows


def _document_starts(stream: TokenStream) -> NDArray[np.int64]:
    found = [
        start + np.flatnonzero(stream[start : start + _CHUNK] == stream.separator)
        for start in range(0, len(stream), _CHUNK)
    ]
    return np.concatenate([np.zeros(0, dtype=np.int64), *found])


def _pack(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Return which documents each row takes: the longest that is left, and then whatever fits best behind it."""
    left = sorted(range(len(sizes)), key=lambda document: sizes[document])
    rows: list[list[int]] = []
    while left:
        row, free = [], length
        while (fitting := bisect_right(left, free, key=lambda document: sizes[document])) > 0:
            document = left.pop(fitting - 1)
            row.append(document)
            free -= sizes[document]
        rows.append(row)
    return rows
