"""Texts in pieces, for tokenizers take many times what they are given at a time."""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

__all__ = ["Text", "cut_pieces", "text_pieces"]

Text: TypeAlias = bytes | memoryview
"""A document, or a part of one."""


def text_pieces(document: Text, size: int) -> Iterator[bytes]:
    """Yield a document of UTF-8 in pieces of at most `size` bytes, cut at a line end where there is one."""
    return cut_pieces((bytes(document[start : start + size]) for start in range(0, len(document), size)), size)


def cut_pieces(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the text that comes in `chunks`, cut anywhere, in the pieces of `text_pieces`."""
    text = b""
    for chunk in chunks:
        text = text + chunk if text else chunk
        while len(text) > size:
            piece = text[:size]
            piece = piece[: piece.rfind(b"\n") + 1] or _whole_characters(piece)
            yield piece
            text = text[len(piece) :]
    if text:
        yield text


def _whole_characters(piece: bytes) -> bytes:
    """`piece` of UTF-8 without the beginning of a character at its end."""
    end = len(piece)
    while end > 1 and piece[end - 1] & 0xC0 == 0x80:
        end -= 1
    return piece[: end - 1] if end > 1 and piece[end - 1] >= 0xC0 else piece
