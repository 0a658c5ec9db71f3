"""The file: what `torch.compiler` saves, and beside it what it leaves out, libraries of C++ and Triton's cache folder.

A line with the hash of all that follows, then a ZIP. Nothing in it is looked at before the hash is found to be right;
what is in it, once it stands in the compilers' folders, is code that they run.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from zoo.caching.kind import kind_of, processor
from zoo.errors import InputError
from zoo.reading import hash_of, read_regular
from zoo.report.files import replace_file, writing

__all__ = ["Loaded", "load_cache", "save_cache"]

_FORMAT = "zoo compile cache 1"
_KIND, _ARTIFACTS = "kind.json", "artifacts"
_FOLDERS = {"inductor": "TORCHINDUCTOR_CACHE_DIR", "triton": "TRITON_CACHE_DIR"}
_NAME = re.compile(r"(?:inductor|triton)(?:/[\w.-]*[\w-][\w.-]*)+", re.ASCII)
_GROUP = "__grp__"  # begins the names of Triton's lists of files, which hold whole paths

Files = dict[str, bytes]


class Loaded(NamedTuple):
    """What loading a file came to."""

    new: int
    """Entries, each a graph, a library or a kernel, that were put where the compilers look."""
    known: int
    """Entries that were there already."""
    remark: str | None
    """Why part of it will not be found, if so."""


def save_cache(path: Path, run: Callable[[], object], device: torch.device) -> int:
    """Call `run` with empty caches, and write what is compiled meanwhile to a file, whole or not at all.

    Args:
        path: the file; one that is there is replaced.
        run: whatever compiles, on `device`.
        device: a file is for machines that have one of its kind.

    Returns:
        How many graphs, libraries and kernels the file has.

    Raises:
        InputError: this process has compiled before, so that what it keeps in memory would be missing; nothing is
            compiled; or the file cannot be written.
    """
    if torch.compiler.save_cache_artifacts() is not None:
        raise InputError(f"{path}: expected a process that has compiled nothing before; start another")
    with _empty_caches() as folder:
        run()
        saved = torch.compiler.save_cache_artifacts()
        files = _files_in(folder, "inductor/**/*.so", "triton/**/*")
    if saved is None and not files:
        raise InputError(f"{path}: nothing was compiled, so that there is nothing to save")
    kind = {"type": device.type, **kind_of(device.type)}
    if any(name.startswith("inductor/") for name in files):
        kind |= processor()
    entries = len({_entry(name) for name in files}) + (sum(map(len, saved[1].artifacts.values())) if saved else 0)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {_KIND: json.dumps(kind).encode(), _ARTIFACTS: saved[0] if saved else b"", **files}.items():
            archive.writestr(name, data)
    head = f"{_FORMAT} {hash_of(content.getbuffer())}\n".encode()
    replace_file(path, head + content.getvalue(), InputError)
    return entries


def load_cache(path: Path, *, trusted: bool = False) -> Loaded:
    """Put what `save_cache` wrote where the compilers of this machine look, by their variables in the environment.

    Args:
        path: the file.
        trusted: say True for a file of your own, or of someone whom you would let run code here. What is compiled
            next runs what is in it.

    Raises:
        InputError: the file cannot be read, is none or damaged, not `trusted`, or made by other versions or on another
            kind of machine; nothing is written then. Or a folder cannot be written.
    """
    content = _sound(path)
    if not trusted:
        raise InputError(
            f"trusted: {path} holds programs, which can do what you can; say so (--trusted) if you know who wrote them"
        )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        kind = json.loads(archive.read(_KIND))
        remark = _check_kind(path, kind)
        artifacts = archive.read(_ARTIFACTS)
        files = {name: archive.read(name) for name in archive.namelist() if _NAME.fullmatch(name)}
    with _empty_caches() as folder:
        if artifacts and torch.compiler.load_cache_artifacts(artifacts) is None:
            raise InputError(f"{path}: cannot be read by torch {torch.__version__}")
        files |= _files_in(folder, "inductor/**/*")
    new = {_entry(name) for name in sorted(files, key=_is_last) if _put(name, files[name])}
    return Loaded(len(new), len({_entry(name) for name in files} - new), remark)


def _sound(path: Path) -> memoryview:
    """Return a file's bytes behind its first line, if they are those that were written."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    head, _, _ = content[:128].partition(b"\n")
    if not head.startswith(b"zoo compile cache "):
        raise InputError(f"{path}: expected a file that zoo cache save wrote")
    if not head.startswith(f"{_FORMAT} ".encode()):
        raise InputError(f"{path}: expected format {_FORMAT!r}, was {head[:32].decode(errors='replace')!r}")
    rest = memoryview(content)[len(head) + 1 :]
    if head != f"{_FORMAT} {hash_of(rest)}".encode():
        raise InputError(f"{path}: is damaged: its bytes are not those that were written")
    return rest


def _check_kind(path: Path, kind: dict[str, str]) -> str | None:
    """Refuse what was compiled by or for something else, and return why part of the rest will not be found."""
    libraries = processor() if "processor" in kind else {}
    for name, here in (kind_of(kind["type"]) | libraries).items():
        if name != "environment" and kind[name] != here:
            raise InputError(f"{path}: {name}: expected {here}, as it is here, was {kind[name]}; save it anew")
    if libraries and kind["environment"] != libraries["environment"]:
        return (
            f"libraries of C++ are of use where Python's environment is {kind['environment']}, and here it is "
            f"{libraries['environment']}: they will be compiled again"
        )
    return None


@contextmanager
def _empty_caches() -> Iterator[Path]:
    """Give the compilers empty folders in a new one, which is gone afterwards."""
    before = {variable: os.environ.get(variable) for variable in _FOLDERS.values()}
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ.update({variable: str(Path(folder, name)) for name, variable in _FOLDERS.items()})
        try:
            yield Path(folder)
        finally:
            for variable, value in before.items():
                os.environ.pop(variable, None)
                if value is not None:
                    os.environ[variable] = value


def _files_in(folder: Path, *patterns: str) -> Files:
    found = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def _entry(name: str) -> str:
    """Return the key that a file is found by: that of its folder, or its own name where folders are of two letters."""
    path = PurePosixPath(name)
    return path.parent.name if len(path.parent.name) > 2 else path.name.partition(".")[0]


def _is_last(name: str) -> bool:
    """Whether a file may be there once those are that it lists."""
    return PurePosixPath(name).name.startswith(_GROUP)


def _put(name: str, content: bytes) -> bool:
    """Write a file where it is looked for, unless it is there; tell whether it was missing."""
    room, _, rest = name.partition("/")
    missing = [place for folder in _places(room) if not (place := folder / rest).exists()]
    for place in missing:
        if _is_last(name):
            children = json.loads(content)["child_paths"]
            content = json.dumps({"child_paths": {child: str(place.parent / child) for child in children}}).encode()
        with writing(place, InputError):
            place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, content, InputError)
    return bool(missing)


def _places(room: str) -> list[Path]:
    """Return the folders that are looked in. Triton's is the compiler's from the first kernel on that this one made."""
    compilers = Path(cache_dir())
    if room == "inductor":
        return [compilers]
    if own := os.environ.get("TRITON_CACHE_DIR"):
        return [Path(own)]
    import triton

    devices = range(max(1, torch.cuda.device_count()))
    return [Path(triton.knobs.cache.dir), *(compilers / "triton" / str(device) for device in devices)]
