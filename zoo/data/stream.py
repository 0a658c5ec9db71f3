"""Token ids as arrays: a long sequence of them, in memory or memory-mapped, read by position, or a few to decode."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from zoo.errors import InputError

__all__ = ["Ids", "TokenStream", "id_array", "token_array"]

Ids: TypeAlias = Sequence[int] | NDArray[np.integer] | Tensor


class TokenStream:
    """Tokens one after the other, in one or more arrays that are never copied as a whole.

    Args:
        segments: uint16 arrays `[n]`, in memory or memory-mapped, read as if they were joined.
        separator: the id that starts every document, or None where documents are not marked.
        name: what error messages call it.

    Raises:
        InputError: a segment is not a one-dimensional uint16 array.
    """

    def __init__(
        self, segments: Sequence[NDArray[np.uint16]], separator: int | None = None, *, name: str = "stream"
    ) -> None:
        for segment in segments:
            if segment.ndim != 1 or segment.dtype != np.uint16:
                raise InputError(f"segments: expected uint16 [n], got {segment.dtype} {list(segment.shape)}")
        self.separator = separator
        self.name = name
        self._segments = [segment.view(np.ndarray) for segment in segments if len(segment)]
        self._starts = [0, *accumulate(len(segment) for segment in self._segments)]

    @classmethod
    def of(cls, tokens: ArrayLike, separator: int | None = None, *, name: str = "stream") -> "TokenStream":
        """Return a stream over `tokens` `[n]`, any integers that fit uint16."""
        return cls([token_array(tokens)], separator, name=name)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, where: slice) -> NDArray[np.uint16]:
        """Return tokens `start:stop` `[n]` uint16; a view where they lie in one segment. Only step 1."""
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise InputError(f"stream: expected a slice of step 1, got step {step}")
        parts = []
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            segment, base = self._segments[index], self._starts[index]
            parts.append(segment[start - base : stop - base])
            start, index = base + len(segment), index + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.zeros(0, dtype=np.uint16), *parts])

    def part(self, start: int, stop: int, *, name: str) -> "TokenStream":
        """Return tokens `start:stop` as a stream of its own, over the same memory."""
        segments = [
            segment[max(start - base, 0) : max(stop - base, 0)]
            for segment, base in zip(self._segments, self._starts, strict=False)
        ]
        return TokenStream(segments, self.separator, name=name)


def token_array(tokens: ArrayLike) -> NDArray[np.uint16]:
    """Return `tokens` as uint16 `[n]`.

    Raises:
        InputError: not one-dimensional, not integers, or an id outside 0..65535.
    """
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise InputError(f"tokens: expected one dimension, got shape {list(array.shape)}")
    if array.size == 0:
        return np.zeros(0, dtype=np.uint16)
    if array.dtype.kind not in "iu":
        raise InputError(f"tokens: expected integers, got {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= 2**16:
        raise InputError(f"tokens: expected ids from 0 to 65535, got {low if low < 0 else high}")
    return array.astype(np.uint16)


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
