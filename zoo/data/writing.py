"""Token shards of our own, written bit by bit and whole or not at all."""

import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zoo.data.header import HEADER_BYTES, ShardHeader
from zoo.data.stream import id_dtype, token_array
from zoo.data.tokenizer import Tokenizer
from zoo.errors import CorpusError, InputError
from zoo.report.files import locked, replace_file, sync_folder, writing

__all__ = ["ShardWriter", "new_folder", "write_shard"]

_OURS = re.compile(r"(train|validation)-\d+\.bin|\.[0-9a-f]{16}\.partial|manifest\.json|tokenizer\.json")


class ShardWriter:
    """A shard that grows: tokens are appended, and `finish` gives it its header and its name.

    Args:
        path: the file, ending in `.bin`; what is written so far lies beside it, as `.partial`.
        tokenizer: whose ids they are.
        counted: whether bytes of text are stated for each token.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, *, counted: bool = False) -> None:
        self.path, self._tokenizer, self._counted = path, tokenizer, counted
        self._dtype = id_dtype(tokenizer.vocab_size).newbyteorder("<")
        self._hash = hashlib.sha256()
        self._counts = tempfile.TemporaryFile() if counted else None  # noqa: SIM115 (closed by `discard`)
        self._partial = path.with_name(f".{secrets.token_hex(8)}.partial")
        self.tokens = self.documents = self.text_bytes = 0
        self._file = self._partial.open("xb")
        self._file.write(bytes(HEADER_BYTES))

    def write(self, ids: NDArray[np.integer], byte_counts: NDArray[np.integer] | None, text_bytes: int) -> None:
        """Append tokens.

        Args:
            ids: `[n]`, below the tokenizer's `vocab_size`.
            byte_counts: bytes of text that fall to each, `[n]`, where the shard is counted.
            text_bytes: bytes of text that all of them stand for.
        """
        content = ids.astype(self._dtype, copy=False).data
        self._file.write(content)
        self._hash.update(content)
        if self._counts is not None and byte_counts is not None:
            self._counts.write(byte_counts.astype("<u4", copy=False).data)
        self.tokens += len(ids)
        self.documents += int(np.count_nonzero(ids == self._tokenizer.separator))
        self.text_bytes += text_bytes

    def finish(self) -> ShardHeader:
        """Write the header, and give the file its name once it is on the disk."""
        if self._counts is not None:
            self._counts.seek(0)
            while chunk := self._counts.read(2**20):
                self._file.write(chunk)
                self._hash.update(chunk)
        header = ShardHeader(
            id_bytes=self._dtype.itemsize,
            tokens=self.tokens,
            documents=self.documents,
            text_bytes=self.text_bytes,
            vocab_size=self._tokenizer.vocab_size,
            separator=self._tokenizer.separator,
            counted=self._counted,
            tokenizer=bytes.fromhex(self._tokenizer.hash),
            content=self._hash.digest(),
        )
        self._file.seek(0)
        self._file.write(header.pack())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._partial, self.path)
        sync_folder(self.path.parent)
        self.discard()
        return header

    def discard(self) -> None:
        """Remove what is not finished."""
        self._file.close()
        if self._counts is not None:
            self._counts.close()
        self._partial.unlink(missing_ok=True)


def write_shard(path: str | os.PathLike[str], tokens: ArrayLike, tokenizer: Tokenizer | None = None) -> None:
    """Write `tokens` as one shard, whole or not at all.

    Args:
        path: the file, ending in `.bin`; replaced if it is there.
        tokens: integers `[n]`, at least one; without a tokenizer 0 to 65535.
        tokenizer: whose ids they are. The shard has a header that says so, and ids of as many bytes as its vocabulary
            takes; None: bare uint16.

    Raises:
        InputError: `path` does not end in `.bin`, or `tokens` are none, not integers, not one-dimensional or too large.
        CorpusError: the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    if path.suffix != ".bin":
        raise InputError(f"path: expected a name that ends in .bin, got {path.name!r}")
    array = token_array(tokens)
    if not len(array):
        raise InputError("tokens: expected at least one, got none")
    largest = 2**16 - 1 if tokenizer is None else tokenizer.vocab_size - 1
    if (highest := int(array.max())) > largest:
        hint = "; with its tokenizer wider ids are written" if tokenizer is None else ""
        raise InputError(f"tokens: expected ids from 0 to {largest}, got {highest}{hint}")
    if tokenizer is None:
        replace_file(path, array.astype("<u2", copy=False).data, CorpusError)
        return
    with writing(path, CorpusError):
        writer = ShardWriter(path, tokenizer)
        try:
            # A separator stands for no byte; where bytes are unknown, so is their number.
            writer.write(array, None, round(float(tokenizer.byte_lengths[array].sum())))
            writer.finish()
        finally:
            writer.discard()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill, which gets its name, `path`, at the end of the block; after an error it is gone.

    Until then it is called `.partial`; what a killed process left under that name is removed.

    Raises:
        InUseError: another process fills it.
        CorpusError: something else is there under that name.
        OSError: something is there at the end.
    """
    partial = path.with_name(f"{path.name}.partial")
    with locked(partial, "is writing"):
        try:
            _clear(partial)
            yield partial
            sync_folder(partial)
            partial.rename(path)
            sync_folder(path.parent)
        finally:
            if partial.is_dir() and _is_ours(partial):
                shutil.rmtree(partial)


def _clear(partial: Path) -> None:
    if not _is_ours(partial):
        raise CorpusError(f"{partial}: holds files that no unfinished preparation left; name another folder")
    for rest in partial.iterdir():
        rest.unlink()


def _is_ours(partial: Path) -> bool:
    return all(path.is_file() and _OURS.fullmatch(path.name) for path in partial.iterdir())
