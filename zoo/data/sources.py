"""Where text comes from: the standard library's own source, or files, folders and globs."""

import glob
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from zoo.errors import CorpusError, nearest
from zoo.reading import read_regular

__all__ = ["MANIFEST", "MANIFEST_FORMAT", "find_files", "source_root", "stdlib_files"]

MANIFEST = "manifest.json"
"""Lies beside the shards that `zoo data prepare` wrote."""

MANIFEST_FORMAT = "mixer-zoo tokens"
"""What its format is called, before the version."""

# Tests repeat themselves and hold odd encodings; site-packages differ from machine to machine.
_STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__"}


def stdlib_files() -> list[Path]:
    """Return the Python files of the running interpreter's standard library, in the order of their relative names.

    Left out are tests, installed packages and what is generated when Python is built (`_sysconfigdata*.py` and
    `config-*/`, which hold the paths of the building machine), so that one Python version is one corpus everywhere.

    Raises:
        CorpusError: the library's source is not on this machine, as in some embedded Pythons.
    """
    root = source_root("stdlib")
    paths = [path for path in _walk(root, _is_outside_stdlib) if path.suffix == ".py"]
    if not paths:
        raise CorpusError(f"data.source: 'stdlib' finds no Python source in {root}; name a text file or folder instead")
    return paths


def source_root(source: str) -> Path:
    """Return the folder that the files of a source lie below: of a glob the one before its first wildcard."""
    if source == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    fixed = takewhile(lambda part: not glob.has_magic(part), path.parent.parts)
    return Path(*fixed)


def find_files(source: str) -> list[Path]:
    """Return the files that `source` names, in an order that depends on their relative names alone.

    A folder stands for every file in it and below, without hidden ones (`.git`), `__pycache__` and links to folders;
    one that `zoo data prepare` wrote for its shards, and one that Hugging Face's `datasets` saved for its Arrow files.
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
        if (listed := _listed(path)) is not None:
            return listed
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


def _listed(folder: Path) -> list[Path] | None:
    """Return the files that a folder's own list of them names; None: it has none."""
    manifest = _json_object(folder / MANIFEST)
    if str(manifest.get("format", "")).startswith(MANIFEST_FORMAT):
        return _named_in(folder, manifest.get("shards"), "name")
    if (folder / "dataset_info.json").is_file():  # of datasets.Dataset.save_to_disk
        return _named_in(folder, _json_object(folder / "state.json").get("_data_files"), "filename")
    splits = _json_object(folder / "dataset_dict.json").get("splits")
    if isinstance(splits, list) and splits:
        raise CorpusError(
            f"data.source: {str(folder)!r} holds the splits {', '.join(map(repr, splits))} of a dataset; name one, "
            f"such as {str(folder / str(splits[0]))!r}"
        )
    return None


def _named_in(folder: Path, entries: object, key: str) -> list[Path] | None:
    """Return the files of a list, or None where it is of another kind; one that names files elsewhere is."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None
    names = [str(entry.get(key, "")) for entry in entries]
    if not names or any(Path(name).name != name for name in names):
        return None
    return [folder / name for name in names]


def _json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is no such file, or something else in it."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_regular(path))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


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
