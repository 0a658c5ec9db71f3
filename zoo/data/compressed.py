"""Files as streams of bytes, plain or packed by gzip (`.gz`) or Zstandard (`.zst`), which the name's end tells."""

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NoReturn, cast

from zoo.errors import CorpusError
from zoo.reading import open_regular

__all__ = ["PACKED", "chunks_of", "kind_of", "lines_of", "opened", "optional_pyarrow", "seekable"]

PACKED = (".gz", ".zst")
_CHUNK = 2**20


def kind_of(path: Path) -> str:
    """Return the part of a file's name that says what is in it, such as `.jsonl` of `a.jsonl.gz`, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in PACKED), "")


def optional_pyarrow(path: Path) -> ModuleType:
    """Return the library that reads a file.

    Raises:
        CorpusError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise CorpusError(
            f"data.source: {str(path)!r} is read by an optional library: pip install 'mixer-zoo[data]'"
        ) from None
    return pyarrow


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file and unpack it while it is read, from its beginning to its end.

    Raises:
        CorpusError: it cannot be read or is damaged, also while it is read inside the block.
    """
    suffix = path.suffix.lower()
    try:
        with open_regular(path) as file:
            if suffix == ".gz":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield cast(BinaryIO, unpacked)
            elif suffix == ".zst":
                library = optional_pyarrow(path)
                with library.CompressedInputStream(library.PythonFile(file, mode="r"), "zstd") as unpacked:
                    yield unpacked
            else:
                yield file
    except (EOFError, zlib.error) as error:
        raise CorpusError(f"data.source: {str(path)!r} is damaged or cut short: {error}") from None
    except OSError as error:
        _refuse(path, error)


def _refuse(path: Path, error: OSError) -> NoReturn:
    if error.errno is None:  # of a library that unpacks, not of the system
        raise CorpusError(f"data.source: {str(path)!r} is damaged or cut short: {error}") from None
    raise CorpusError(f"data.source: cannot read {str(path)!r}: {error.strerror}") from error


@contextmanager
def seekable(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is read from any place; a packed one is unpacked to a temporary file first.

    Raises:
        CorpusError: as `opened`.
    """
    with opened(path) as file:
        if path.suffix.lower() not in PACKED:
            yield file
            return
        with tempfile.TemporaryFile() as unpacked:
            while chunk := file.read(_CHUNK):
                unpacked.write(chunk)
            unpacked.seek(0)
            yield cast(BinaryIO, unpacked)


def chunks_of(path: Path) -> Iterator[bytes]:
    """Yield what a file holds, unpacked, at most 1 MiB at a time.

    Raises:
        CorpusError: as `opened`.
    """
    with opened(path) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def lines_of(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield lines without their ends; the last one only where something stands in it."""
    begun: list[bytes] = []  # of a line that goes over several chunks
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        begun.append(first)
        if others:
            yield b"".join(begun).removesuffix(b"\r")
            yield from (line.removesuffix(b"\r") for line in others[:-1])
            begun = [others[-1]]
    if last := b"".join(begun):
        yield last.removesuffix(b"\r")
