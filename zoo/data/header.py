"""The header of our own token shards: what is in them, from which tokenizer, and hashes that tell damage."""

import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from zoo.errors import CorpusError

__all__ = ["HEADER_BYTES", "MAGIC", "ShardHeader"]

MAGIC = b"ZOOSHARD"
HEADER_BYTES = 256
_VERSION = 1
_NONE = 2**32 - 1
# Magic; version, bytes of an id; tokens, documents, bytes of text; vocabulary, separator, bytes of a count; 12 free.
_FIELDS = struct.Struct("<8sIIQQQIII12x32s32s")
_HASH = 32


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says of itself."""

    id_bytes: int
    """2 or 4."""
    tokens: int
    documents: int
    """How many start in this shard."""
    text_bytes: int
    """Bytes of UTF-8 that the tokens stand for; 0 where it is not known."""
    vocab_size: int
    """Every id is below it."""
    separator: int | None
    """The id that starts documents."""
    counted: bool
    """Whether the ids are followed by how many bytes of text fall to each, uint32."""
    tokenizer: bytes
    """sha256 of the tokenizer; zeros where it is not known."""
    content: bytes
    """sha256 of all bytes after the header."""

    @property
    def content_bytes(self) -> int:
        """How many bytes follow the header."""
        return self.tokens * (self.id_bytes + 4 * self.counted)

    def pack(self) -> bytes:
        """Return the header as it stands in a file, 256 bytes."""
        fields = _FIELDS.pack(
            MAGIC, _VERSION, self.id_bytes,
            self.tokens, self.documents, self.text_bytes,
            self.vocab_size, _NONE if self.separator is None else self.separator, 4 * self.counted,
            self.tokenizer, self.content,
        )  # fmt: skip
        return (fields + sha256(fields).digest()).ljust(HEADER_BYTES, b"\0")

    @classmethod
    def unpack(cls, data: bytes, name: str) -> Self:
        """Return what the first 256 bytes of a file say; `name` is what errors call it.

        Raises:
            CorpusError: they are damaged, or of a later version.
        """
        fields = data[: _FIELDS.size]
        sound = len(data) >= HEADER_BYTES and sha256(fields).digest() == data[_FIELDS.size : _FIELDS.size + _HASH]
        if not sound:
            raise CorpusError(f"data.source: the shard {name} has a damaged header")
        _, version, id_bytes, tokens, documents, text_bytes, vocab_size, separator, count_bytes, tokenizer, content = (
            _FIELDS.unpack(fields)
        )
        if version != _VERSION or id_bytes not in (2, 4) or count_bytes not in (0, 4):
            raise CorpusError(f"data.source: the shard {name} is of a later version ({version}) of the format")
        return cls(
            id_bytes, tokens, documents, text_bytes, vocab_size, None if separator == _NONE else separator,
            bool(count_bytes), tokenizer, content,
        )  # fmt: skip
