"""Token ids as arrays: a long sequence of them, in memory or memory-mapped, read by position, or a few to decode."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from zoo.errors import InputError

__all__ = ["Counted", "Ids", "TokenStream", "id_array", "id_dtype", "token_array"]

_WIDTHS: tuple[np.dtype[np.unsignedinteger], ...] = (np.dtype(np.uint16), np.dtype(np.uint32))

Ids: TypeAlias = Sequence[int] | NDArray[np.integer] | Tensor


class TokenStream:
    """Tokens one after the other, in one or more arrays that are never copied as a whole.

    Args:
        segments: arrays `[n]` of uint16 or uint32, in memory or memory-mapped, read as if they were joined.
        separator: the id that starts every document, or None where documents are not marked.
        name: what error messages call it.
        byte_counts: arrays `[n]` as `segments`, of how many bytes of text fall to each token, where ids do not tell.

    Raises:
        InputError: a segment is not a one-dimensional array of uint16 or uint32.
    """

    def __init__(
        self,
        segments: Sequence[NDArray[np.unsignedinteger]],
        separator: int | None = None,
        *,
        name: str = "stream",
        byte_counts: Sequence[NDArray[np.unsignedinteger]] | None = None,
    ) -> None:
        for segment in segments:
            if segment.ndim != 1 or segment.dtype not in _WIDTHS:
                raise InputError(f"segments: expected uint16 or uint32 [n], got {segment.dtype} {list(segment.shape)}")
        self.separator = separator
        self.name = name
        self.byte_counts = None if byte_counts is None else TokenStream(byte_counts, name=f"bytes of {name}")
        self.dtype: np.dtype[np.unsignedinteger] = max(
            (segment.dtype for segment in segments), key=lambda dtype: dtype.itemsize, default=_WIDTHS[0]
        )
        """Of what slices are: that of the widest segment."""
        self._segments = [segment.view(np.ndarray) for segment in segments if len(segment)]
        self._starts = [0, *accumulate(len(segment) for segment in self._segments)]

    @classmethod
    def of(cls, tokens: ArrayLike, separator: int | None = None, *, name: str = "stream") -> "TokenStream":
        """Return a stream over `tokens` `[n]`, any integers that fit uint32."""
        return cls([token_array(tokens)], separator, name=name)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, where: slice) -> NDArray[np.unsignedinteger]:
        """Return tokens `start:stop` `[n]`, uint16 or uint32; a view where they lie in one segment. Only step 1."""
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise InputError(f"stream: expected a slice of step 1, got step {step}")
        parts = []
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            segment, base = self._segments[index], self._starts[index]
            parts.append(segment[start - base : stop - base].astype(self.dtype, copy=False))
            start, index = base + len(segment), index + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.zeros(0, dtype=self.dtype), *parts])

    def part(self, start: int, stop: int, *, name: str) -> "TokenStream":
        """Return tokens `start:stop` as a stream of its own, over the same memory."""
        counts = None if self.byte_counts is None else self.byte_counts._cut(start, stop)
        return TokenStream(self._cut(start, stop), self.separator, name=name, byte_counts=counts)

    def _cut(self, start: int, stop: int) -> list[NDArray[np.unsignedinteger]]:
        return [
            segment[max(start - base, 0) : max(stop - base, 0)]
            for segment, base in zip(self._segments, self._starts, strict=False)
        ]


class Counted(NamedTuple):
    """The tokens of a text and what of it falls to each."""

    ids: NDArray[np.unsignedinteger]
    """`[n]`, uint16 or uint32 as the vocabulary asks for."""
    byte_counts: NDArray[np.uint32]
    """Bytes of the text, `[n]`."""


def id_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Return the narrowest type, uint16 or uint32, that holds the ids of a vocabulary."""
    return _WIDTHS[vocab_size > 2**16]


def token_array(tokens: ArrayLike) -> NDArray[np.unsignedinteger]:
    """Return `tokens` `[n]` as uint16, or as uint32 where an id asks for it.

    Raises:
        InputError: not one-dimensional, not integers, or an id outside 0..4294967295.
    """
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise InputError(f"tokens: expected one dimension, got shape {list(array.shape)}")
    if array.size == 0:
        return np.zeros(0, dtype=np.uint16)
    if array.dtype.kind not in "iu":
        raise InputError(f"tokens: expected integers, got {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= 2**32:
        raise InputError(f"tokens: expected ids from 0 to 4294967295, got {low if low < 0 else high}")
    return array.astype(id_dtype(high + 1))


def id_array(ids: Ids, vocab_size: int) -> NDArray[np.int64]:
    """Return `ids` as an int64 array `[n]`.

    Raises:
        InputError: `ids` is not one-dimensional, not of integers, or holds an id outside 0..vocab_size - 1.
    """
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.ndim != 1:
        raise InputError(f"ids: expected one dimension, got shape {list(array.shape)}")
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise InputError(f"ids: expected integers, got {array.dtype}")
    for extreme in (array.min(), array.max()):
        if not 0 <= extreme < vocab_size:
            raise InputError(f"ids: expected 0 to {vocab_size - 1}, got {extreme}")
    return array.astype(np.int64)
