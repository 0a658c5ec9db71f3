"""Token shards: files of little-endian uint16 ids, bare as in nanoGPT's `train.bin`, or behind a known header."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zoo.data.stream import TokenStream, token_array
from zoo.errors import CorpusError, InputError
from zoo.reading import open_regular
from zoo.report.files import replace_file

__all__ = ["hash_tokens", "open_shard", "split_shards", "write_shard"]

_CHUNK = 2**22
_LLM_C_BYTES, _LLM_C_UINT16, _LLM_C_UINT32 = 1024, 20240520, 20240801
_VALIDATION_NAME = re.compile(r"(?<![a-z])val(id|idation)?(?![a-z])", re.IGNORECASE)


def write_shard(path: str | os.PathLike[str], tokens: ArrayLike) -> None:
    """Write `tokens` as one shard, whole or not at all.

    Args:
        path: the file, ending in `.bin`; replaced if it is there.
        tokens: integers `[n]`, 0 to 65535, at least one.

    Raises:
        InputError: `path` does not end in `.bin`, or `tokens` are none, not integers, not one-dimensional or too large.
        CorpusError: the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    if path.suffix != ".bin":
        raise InputError(f"path: expected a name that ends in .bin, got {path.name!r}")
    array = token_array(tokens).astype("<u2", copy=False)
    if not len(array):
        raise InputError("tokens: expected at least one, got none")
    replace_file(path, array.data, CorpusError)


def open_shard(path: Path) -> NDArray[np.uint16]:
    """Return the tokens of the shard at `path`, memory-mapped, `[n]` uint16.

    Read are bare ids, and those behind the headers of llm.c (256 int32, of which the first is 20240520) and of NumPy.

    Raises:
        CorpusError: the file cannot be read, is empty, has an odd number of bytes, or holds ids of another type.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = _header(path, file)
            if size == start:
                raise CorpusError(f"data.source: the shard {str(path)!r} is empty")
            if (size - start) % 2:
                raise CorpusError(
                    f"data.source: the shard {str(path)!r} has {size} bytes, an odd number, so it is not uint16"
                )
            tokens = np.memmap(file, dtype="<u2", mode="r", offset=start)
    except OSError as error:
        raise CorpusError(f"data.source: cannot read {str(path)!r}: {error.strerror}") from error
    _check_width(path, tokens)
    return tokens.astype(np.uint16, copy=False)


def _header(path: Path, file: BinaryIO) -> int:
    """Return how many bytes stand before the ids."""
    first = file.read(_LLM_C_BYTES)
    if first.startswith(b"\x93NUMPY"):
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            raise CorpusError(f"data.source: the shard {str(path)!r} is a damaged NumPy file: {error}") from None
        if dtype != np.dtype("<u2") or len(shape) != 1:
            raise CorpusError(f"data.source: the shard {str(path)!r} holds {dtype} {list(shape)}, expected uint16 [n]")
        return file.tell()
    kind = int.from_bytes(first[:4], "little")
    if len(first) == _LLM_C_BYTES and kind == _LLM_C_UINT32:
        raise CorpusError(f"data.source: the shard {str(path)!r} holds llm.c's uint32 ids, expected uint16")
    return _LLM_C_BYTES if len(first) == _LLM_C_BYTES and kind == _LLM_C_UINT16 else 0


def _check_width(path: Path, tokens: NDArray[np.uint16]) -> None:
    """Refuse what looks like ids of 4 or 8 bytes: every second half of one is zero, or next to it."""
    ids = tokens[: 2 * _CHUNK]
    if len(tokens) % 2 or len(tokens) < 64:  # too few to tell
        return
    low, high = int(ids[::2].max()), int(ids[1::2].max())
    if (high == 0 and low > 0) or (high <= 3 and low >= 1024):
        raise CorpusError(
            f"data.source: the shard {str(path)!r} looks like ids of 4 or 8 bytes, expected uint16: "
            f"every second one is at most {high}"
        )


def hash_tokens(stream: TokenStream, vocab_size: int) -> str:
    """Return the sha256 of the stream's ids, as hexadecimal; how they are cut into shards does not enter.

    Raises:
        CorpusError: an id is not below `vocab_size`.
    """
    digest = hashlib.sha256()
    for start, chunk in _chunks(stream):
        if (largest := chunk.max()) >= vocab_size:
            position = start + int(chunk.argmax())
            raise CorpusError(
                f"data.source: token {position} has id {largest}, not below the vocabulary of {vocab_size}"
            )
        digest.update(chunk.astype("<u2", copy=False).tobytes())
    return digest.hexdigest()


def split_shards(
    paths: Sequence[Path], shards: Sequence[NDArray[np.uint16]], fraction: float, separator: int | None
) -> tuple[TokenStream, TokenStream]:
    """Return (training, validation) streams over `shards`.

    Shards with the word val, valid or validation in their file name, such as `val.bin`, are the validation set. Without
    (or with nothing but) such shards it is the end of the stream, from a document start that makes it between half and
    twice `fraction` of all tokens; if no document starts there, or none are marked, it is exactly `fraction`.

    Raises:
        CorpusError: there are too few tokens for two sides.
    """
    held_back = [bool(_VALIDATION_NAME.search(path.stem)) for path in paths]
    if any(held_back) and not all(held_back):
        training = [shard for shard, held in zip(shards, held_back, strict=True) if not held]
        validation = [shard for shard, held in zip(shards, held_back, strict=True) if held]
        return (
            TokenStream(training, separator, name="training data"),
            TokenStream(validation, separator, name="validation data"),
        )
    stream = TokenStream(shards, separator)
    cut = _validation_start(stream, fraction)
    if cut == 0:
        raise CorpusError(f"data.source: {len(stream)} tokens are too few to hold some back for validation")
    return stream.part(0, cut, name="training data"), stream.part(cut, len(stream), name="validation data")


def _validation_start(stream: TokenStream, fraction: float) -> int:
    total = len(stream)
    wanted = max(1, round(total * fraction))
    exact = total - wanted
    after = _first_document_start(stream, exact, total - wanted // 2)
    before = _first_document_start(stream, max(1, total - 2 * wanted), exact)
    return after or before or exact


def _first_document_start(stream: TokenStream, begin: int, end: int) -> int | None:
    for start, chunk in _chunks(stream.part(begin, end, name=stream.name)):
        if (found := np.flatnonzero(chunk == stream.separator)).size:
            return begin + start + int(found[0])
    return None


def _chunks(stream: TokenStream) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    for start in range(0, len(stream), _CHUNK):
        yield start, stream[start : start + _CHUNK]
