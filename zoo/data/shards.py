"""Token shards: files of little-endian ids, bare as in nanoGPT's `train.bin`, or behind a header, ours or another."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from zoo.data.header import HEADER_BYTES, MAGIC, ShardHeader
from zoo.data.stream import TokenStream, id_dtype
from zoo.errors import CorpusError
from zoo.reading import open_regular

__all__ = ["Shard", "hash_shards", "open_shard", "split_shards", "stream_of"]

_CHUNK = 2**22
_LLM_C_BYTES, _LLM_C = 1024, {20240520: "<u2", 20240801: "<u4"}
_WIDTHS = ("<u2", "<u4")
_VALIDATION_NAME = re.compile(r"(?<![a-z])val(id|idation)?(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Shard:
    """A file of tokens."""

    path: Path
    tokens: NDArray[np.unsignedinteger]
    """Memory-mapped, `[n]` uint16 or uint32."""
    offset: int = 0
    """Bytes of the file before them."""
    byte_counts: NDArray[np.unsignedinteger] | None = None
    """Bytes of text that fall to each token, memory-mapped, `[n]` uint32, where the shard states them."""
    header: ShardHeader | None = None
    """Of a shard of our own."""

    @property
    def is_validation(self) -> bool:
        """Whether its name says that it is for validation."""
        return _VALIDATION_NAME.search(self.path.stem) is not None


def open_shard(path: Path, vocab_size: int = 2**16) -> Shard:
    """Open the shard at `path`.

    Read are ours, those behind the headers of llm.c (256 int32, of which the first is 20240520, or 20240801 for ids of
    32 bits) and of NumPy, and bare ids.

    Args:
        path: the file.
        vocab_size: bare ids are uint32 where it is over 65,536, and uint16 else.

    Raises:
        CorpusError: the file cannot be read, is empty, cut short or damaged, or holds ids of another type.
    """
    try:
        with open_regular(path) as file:
            return _read_shard(path, file, vocab_size)
    except OSError as error:
        raise CorpusError(f"data.source: cannot read {str(path)!r}: {error.strerror}") from error


def _read_shard(path: Path, file: BinaryIO, vocab_size: int) -> Shard:
    name, size = repr(str(path)), os.fstat(file.fileno()).st_size
    first = file.read(_LLM_C_BYTES)
    if first.startswith(MAGIC):
        return _read_own(path, file, ShardHeader.unpack(first, name), size)
    start, width = _foreign_header(name, file, first, vocab_size)
    dtype = np.dtype(width)
    if size == start:
        raise CorpusError(f"data.source: the shard {name} is empty")
    if (size - start) % dtype.itemsize:
        kind = "an odd number" if dtype.itemsize == 2 else "no multiple of 4"
        raise CorpusError(f"data.source: the shard {name} has {size} bytes, {kind}, so it is not {dtype.name}")
    tokens = np.memmap(file, dtype=dtype, mode="r", offset=start)
    _check_width(name, tokens)
    return Shard(path, tokens.astype(dtype.newbyteorder("="), copy=False), start)


def _read_own(path: Path, file: BinaryIO, header: ShardHeader, size: int) -> Shard:
    if size != HEADER_BYTES + header.content_bytes or not header.tokens:
        raise CorpusError(
            f"data.source: the shard {str(path)!r} has {size} bytes, its header says "
            f"{HEADER_BYTES + header.content_bytes}: it is cut short or damaged"
        )
    dtype, counts = np.dtype(f"<u{header.id_bytes}"), None
    tokens = np.memmap(file, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(header.tokens,))
    if header.counted:
        after = HEADER_BYTES + header.tokens * header.id_bytes
        counts = np.memmap(file, dtype="<u4", mode="r", offset=after, shape=(header.tokens,)).astype("=u4", copy=False)
    return Shard(path, tokens.astype(dtype.newbyteorder("="), copy=False), HEADER_BYTES, counts, header)


def _foreign_header(name: str, file: BinaryIO, first: bytes, vocab_size: int) -> tuple[int, str]:
    """Return how many bytes stand before the ids, and what these are."""
    if first.startswith(b"\x93NUMPY"):
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            raise CorpusError(f"data.source: the shard {name} is a damaged NumPy file: {error}") from None
        if dtype.str not in _WIDTHS or len(shape) != 1:
            raise CorpusError(
                f"data.source: the shard {name} holds {dtype} {list(shape)}, expected uint16 or uint32 [n]"
            )
        return file.tell(), dtype.str
    kind = int.from_bytes(first[:4], "little")
    if len(first) == _LLM_C_BYTES and kind in _LLM_C:
        return _LLM_C_BYTES, _LLM_C[kind]
    return 0, id_dtype(vocab_size).newbyteorder("<").str


def _check_width(name: str, tokens: NDArray[np.unsignedinteger]) -> None:
    """Refuse what looks like wider ids: every second half of one is zero, or next to it."""
    ids = tokens[: 2 * _CHUNK]
    if len(tokens) % 2 or len(tokens) < 64:  # too few to tell
        return
    low, high = int(ids[::2].max()), int(ids[1::2].max())
    if (high == 0 and low > 0) or (high <= 3 and low >= 1024):
        wider = "4 or 8" if tokens.dtype.itemsize == 2 else "8"
        raise CorpusError(
            f"data.source: the shard {name} looks like ids of {wider} bytes, expected {tokens.dtype.name}: "
            f"every second one is at most {high}"
        )


def hash_shards(shards: Sequence[Shard], vocab_size: int) -> str:
    """Return the sha256 of the shards' ids, as hexadecimal; how they are cut into shards does not enter.

    Ids enter with two bytes each, with four where the vocabulary is over 65,536.

    Raises:
        CorpusError: an id is not below `vocab_size`, or a shard of our own is not what its header says.
    """
    digest, width = hashlib.sha256(), id_dtype(vocab_size).newbyteorder("<")
    before = 0
    for shard in shards:
        own = hashlib.sha256()
        for start, chunk in _read_ids(shard):
            if (largest := chunk.max()) >= vocab_size:
                position = before + start + int(chunk.argmax())
                raise CorpusError(
                    f"data.source: token {position} has id {largest}, not below the vocabulary of {vocab_size}"
                )
            digest.update(chunk.astype(width, copy=False).data)
            own.update(chunk.data)
        before += len(shard.tokens)
        if shard.header is None:
            continue
        if shard.byte_counts is not None:
            own.update(shard.byte_counts.astype("<u4", copy=False).data)
        if own.digest() != shard.header.content:
            raise CorpusError(f"data.source: the shard {str(shard.path)!r} is damaged: its sha256 is another one")
    return digest.hexdigest()


def _read_ids(shard: Shard) -> Iterator[tuple[int, NDArray[np.unsignedinteger]]]:
    """Yield where chunks of a shard's ids start, and the chunks, little-endian.

    Read and not mapped: pages of a map that were touched count as this process's memory.
    """
    dtype = shard.tokens.dtype.newbyteorder("<")
    with open_regular(shard.path) as file:
        file.seek(shard.offset)
        for start in range(0, len(shard.tokens), _CHUNK):
            count = min(_CHUNK, len(shard.tokens) - start)
            chunk = np.fromfile(file, dtype=dtype, count=count)
            if len(chunk) < count:
                raise CorpusError(f"data.source: the shard {str(shard.path)!r} was cut short while it was read")
            yield start, chunk


def split_shards(shards: Sequence[Shard], fraction: float, separator: int | None) -> tuple[TokenStream, TokenStream]:
    """Return (training, validation) streams over `shards`.

    Shards with the word val, valid or validation in their file name, such as `val.bin`, are the validation set. Without
    (or with nothing but) such shards it is the end of the stream, from a document start that makes it between half and
    twice `fraction` of all tokens; if no document starts there, or none are marked, it is exactly `fraction`.

    Raises:
        CorpusError: there are too few tokens for two sides.
    """
    validation = [shard for shard in shards if shard.is_validation]
    training = [shard for shard in shards if not shard.is_validation]
    if training and validation:
        return (
            stream_of(training, separator, name="training data"),
            stream_of(validation, separator, name="validation data"),
        )
    stream = stream_of(shards, separator, name="stream")
    cut = _validation_start(stream, fraction)
    if cut == 0:
        raise CorpusError(f"data.source: {len(stream)} tokens are too few to hold some back for validation")
    return stream.part(0, cut, name="training data"), stream.part(cut, len(stream), name="validation data")


def stream_of(shards: Sequence[Shard], separator: int | None, *, name: str) -> TokenStream:
    """Return the tokens of shards one after the other, with what bytes they stand for where all of them say it."""
    counts = [shard.byte_counts for shard in shards if shard.byte_counts is not None]
    return TokenStream(
        [shard.tokens for shard in shards],
        separator,
        name=name,
        byte_counts=counts if len(counts) == len(shards) else None,
    )


def _validation_start(stream: TokenStream, fraction: float) -> int:
    total = len(stream)
    wanted = max(1, round(total * fraction))
    exact = total - wanted
    if stream.separator is None:
        return exact
    after = _first_document_start(stream, exact, total - wanted // 2)
    before = _first_document_start(stream, max(1, total - 2 * wanted), exact)
    return after or before or exact


def _first_document_start(stream: TokenStream, begin: int, end: int) -> int | None:
    for start, chunk in _chunks(stream.part(begin, end, name=stream.name)):
        if (found := np.flatnonzero(chunk == stream.separator)).size:
            return begin + start + int(found[0])
    return None


def _chunks(stream: TokenStream) -> Iterator[tuple[int, NDArray[np.unsignedinteger]]]:
    for start in range(0, len(stream), _CHUNK):
        yield start, stream[start : start + _CHUNK]
