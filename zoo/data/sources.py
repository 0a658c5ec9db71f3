"""Where text comes from: the standard library's own source, or files, folders and globs."""

import codecs
import glob
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NoReturn

from zoo.errors import CorpusError, nearest
from zoo.reading import open_regular

__all__ = ["find_files", "read_documents", "stdlib_files"]

_PIECE = 2**20
# Tests repeat themselves and hold odd encodings; site-packages differ from machine to machine.
_STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__"}


def stdlib_files() -> list[Path]:
    """Return the Python files of the running interpreter's standard library, in the order of their relative names.

    Left out are tests, installed packages and what is generated when Python is built (`_sysconfigdata*.py` and
    `config-*/`, which hold the paths of the building machine), so that one Python version is one corpus everywhere.

    Raises:
        CorpusError: the library's source is not on this machine, as in some embedded Pythons.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in _walk(root, _is_outside_stdlib) if path.suffix == ".py"]
    if not paths:
        raise CorpusError(f"data.source: 'stdlib' finds no Python source in {root}; name a text file or folder instead")
    return paths


def find_files(source: str) -> list[Path]:
    """Return the files that `source` names, in an order that depends on their relative names alone.

    A folder stands for every file in it and below, without hidden ones (`.git`), `__pycache__` and links to folders.
    In a glob, `**` stands for any number of folders.

    Args:
        source: `stdlib`, or the path of a file or folder, or a glob; `~` is the home folder.

    Raises:
        CorpusError: nothing is there, or a folder cannot be read.
    """
    if source == "stdlib":
        return stdlib_files()
    try:
        return _find_named(source)
    except OSError as error:
        _refuse(error)


def _find_named(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        # Not every entry is a file to read: links may lead nowhere, pipes would wait for a writer.
        if files := [file for file in _walk(path, _is_hidden) if file.is_file()]:
            return files
        raise CorpusError(f"data.source: the folder {source!r} holds no files")
    if path.is_file():
        return [path]
    if not glob.has_magic(source):
        raise CorpusError(f"data.source: no file or folder {source!r}{nearest(source, ['stdlib'])}")
    matches = (Path(match) for match in glob.glob(str(path), recursive=True))
    if files := sorted((match for match in matches if match.is_file()), key=Path.as_posix):
        return files
    raise CorpusError(f"data.source: the glob {source!r} matches no files")


def read_documents(paths: Iterable[Path], encoding: str = "utf-8") -> tuple[list[bytes], int]:
    """Return the contents of the text files among `paths` as UTF-8, one document a file, in the same order.

    Text is what decodes and holds no NUL. Other files are left out, and counted beside; empty ones are left out too.

    Raises:
        CorpusError: a file cannot be read.
    """
    texts, left_out = [], 0
    for path in paths:
        text = _read(path, encoding)
        if text is None:
            left_out += 1
        elif text:
            texts.append(text)
    return texts, left_out


def _read(path: Path, encoding: str) -> bytes | None:
    try:
        with open_regular(path) as file:
            return _as_utf8(file, encoding)
    except OSError as error:
        _refuse(error)


def _as_utf8(file: BinaryIO, encoding: str) -> bytes | None:
    """Return what a file holds as UTF-8 without a NUL, or None if it is no text in `encoding`.

    Piece by piece: all of it decoded takes up to four times its size, and both forms of it twice.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    result = BytesIO()
    piece = b""
    try:
        while piece := file.read(_PIECE):
            text = decoder.decode(piece)
            if "\0" in text:
                return None
            result.write(piece if is_utf8 else text.encode())
        result.write(b"" if is_utf8 else decoder.decode(b"", final=True).encode())
        decoder.decode(b"", final=True)
    except UnicodeError:
        return None
    return result.getvalue()


def _walk(root: Path, is_left_out: Callable[[str], bool]) -> list[Path]:
    """Return the files below `root`, without files and folders whose name is left out, by relative name."""

    def files() -> Iterator[Path]:
        for folder, subfolders, names in os.walk(root, onerror=_refuse):
            subfolders[:] = [name for name in subfolders if not is_left_out(name)]
            yield from (Path(folder, name) for name in names if not is_left_out(name))

    return sorted(files(), key=lambda path: path.relative_to(root).as_posix())


def _is_outside_stdlib(name: str) -> bool:
    return name in _STDLIB_LEFT_OUT or name.startswith(("_sysconfigdata", "config-"))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _refuse(error: OSError) -> NoReturn:
    raise CorpusError(f"data.source: cannot read {str(error.filename)!r}: {error.strerror}") from error
