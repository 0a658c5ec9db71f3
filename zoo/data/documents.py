"""The documents of a source, read anew at every pass and piece by piece, so that none has to fit into memory."""

import codecs
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zoo.data.compressed import chunks_of, lines_of
from zoo.data.records import is_of_records, read_records
from zoo.data.sources import source_root
from zoo.data.split import Survey
from zoo.errors import CorpusError
from zoo.recipe.data import DataConfig

__all__ = ["Document", "Documents"]

_logger = logging.getLogger(__name__)

Document = Iterator[bytes]
"""Parts of a text as UTF-8, to be taken before the next document is; never without a byte."""


class Documents:
    """What `config` takes for documents in the files at `paths`, in their order.

    Text files are read through once to tell them from others: text is what decodes (`data.encoding`) and holds no NUL.
    Others are left out, and a warning counts them; empty files and records without text are left out too.

    Raises:
        CorpusError: a file cannot be read, or there is no text in any.
    """

    def __init__(self, paths: Sequence[Path], config: DataConfig) -> None:
        self._config = config
        self._files: list[Path] = []
        self.files_left_out = 0
        """Those that are no text."""
        for path in paths:
            size = 1 if is_of_records(path) else self._text_size(path)
            self.files_left_out += size is None
            if size:
                self._files.append(path)
        encoding = config.encoding.upper()
        if not self._files:
            raise CorpusError(f"data.source: {config.source!r} holds no {encoding} text (data.encoding)")
        if self.files_left_out:
            _logger.warning(
                "data.source: left out %d of %d files that are no %s text (data.encoding names another encoding)",
                self.files_left_out, self.files_left_out + len(self._files), encoding,
            )  # fmt: skip

    @property
    def files(self) -> Sequence[Path]:
        """The files that hold text."""
        return self._files

    def survey(self, advance: Callable[[int], None] = lambda _: None) -> Survey:
        """Read through all documents for what the split needs of them; `advance` is told the bytes read.

        Raises:
            CorpusError: there is no document, or a file cannot be read.
        """
        survey = Survey.of(self, advance)
        if not len(survey):
            raise CorpusError(f"data.source: {self._config.source!r} holds no text")
        return survey

    def __iter__(self) -> Iterator[Document]:
        for group in self._groups():
            if is_of_records(group[0]):
                yield from (iter([text]) for text in read_records(group[0], self._config.column))
            elif self._config.document_by == "line":
                yield from (iter([line]) for line in lines_of(self._text(group[0])) if line)
            else:
                yield self._joined(group)

    def _groups(self) -> list[list[Path]]:
        """The files of each document, or each file of several."""
        if self._config.document_by not in ("folder", "package"):
            return [[path] for path in self._files]
        root = source_root(self._config.source)
        groups: dict[Path, list[Path]] = {}
        for path in self._files:
            entry = path.parent if self._config.document_by == "folder" else root / path.relative_to(root).parts[0]
            groups.setdefault(path if is_of_records(path) else entry, []).append(path)
        return list(groups.values())

    def _joined(self, paths: Sequence[Path]) -> Document:
        """The texts of files one after the other, each of which ends its last line."""
        for path in paths:
            chunk = b""
            for chunk in self._text(path):
                yield chunk
            if path != paths[-1] and not chunk.endswith(b"\n"):
                yield b"\n"

    def _text_size(self, path: Path) -> int | None:
        """Return how many bytes of UTF-8 a file holds, or None where it is no text."""
        size = 0
        try:
            for text in self._decoded(path):
                if "\0" in text:
                    return None
                size += len(text.encode())
        except UnicodeError:
            return None
        return size

    def _text(self, path: Path) -> Iterator[bytes]:
        """Yield the text of a file that holds one, as UTF-8."""
        if codecs.lookup(self._config.encoding).name == "utf-8":
            return chunks_of(path)
        return (text.encode() for text in self._decoded(path) if text)

    def _decoded(self, path: Path) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder(self._config.encoding)()
        for chunk in chunks_of(path):
            yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)
