"""Writing files such that a crash, a full disk or Ctrl-C at any moment leaves the old content or the new."""

import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from stat import S_ISREG
from typing import TextIO

from safetensors import SafetensorError

from zoo.errors import InputError, InUseError, TrainingError, ZooError

__all__ = [
    "check_outputs",
    "is_standard_output",
    "locked",
    "opened",
    "replace_file",
    "sync_file",
    "sync_folder",
    "writing",
]

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW  # never into a file or link that someone else put there


@contextmanager
def writing(path: Path, error: type[ZooError] = TrainingError) -> Iterator[None]:
    """Turn what the operating system has against a write into one line that names `path`."""
    try:
        yield
    except OSError as refusal:
        raise error(f"{path}: cannot be written: {refusal.strerror or refusal}") from refusal
    except SafetensorError as refusal:
        raise error(f"{path}: cannot be written: {refusal}") from refusal


def replace_file(path: Path, content: bytes | memoryview, error: type[ZooError] = TrainingError) -> None:
    """Write a file whole or not at all; what is no file to replace, such as a pipe or a device, is written into.

    A link stays, and what it names is replaced.

    Args:
        path: the file, or `-` for standard output.
        content: all of it.
        error: of what kind a failure is.

    Raises:
        ZooError: of that kind: it cannot be written; what was there stays.
    """
    with writing(path, error):
        if is_standard_output(path):
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        elif _is_replaceable(path):
            _replace(Path(os.path.realpath(path)), content)
        else:
            path.write_bytes(content)


def _replace(path: Path, content: bytes | memoryview) -> None:
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        descriptor = os.open(partial, _NEW, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def locked(folder: Path, use: str) -> Iterator[None]:
    """Keep other processes from using a folder, made if missing, at the same time; ends with the process at the latest.

    Args:
        folder: which.
        use: what others do who have it, such as "is training".

    Raises:
        InUseError: another process has it.
        TrainingError: it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InUseError(f"{folder}: another process {use} here") from None
        yield
    finally:
        os.close(descriptor)


def opened(path: Path) -> TextIO:
    """Open a file to be written bit by bit; `-` is standard output itself."""
    return sys.stdout if is_standard_output(path) else path.open("w", newline="", encoding="utf-8")


def is_standard_output(path: Path) -> bool:
    """Whether a path means standard output: `-`, or by a name of it, whatever it is sent to."""
    if path == Path("-"):
        return True
    with suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(1))
    return False


def check_outputs(**outputs: Path | None) -> None:
    """Refuse what could not be written, before anything is done.

    Args:
        outputs: by the name of the option, None where it is not given; `plot` has to be a picture.

    Raises:
        InputError: a folder, a file in none, more than one that is standard output, a plot that is neither PNG nor SVG,
            or matplotlib is not installed.
    """
    paths = {name: path for name, path in outputs.items() if path is not None}
    for name, path in paths.items():
        if path.is_dir() or not path.parent.is_dir():
            raise InputError(f"{name}: expected a file in a folder that exists, was {str(path)!r}")
    together = [name for name, path in paths.items() if is_standard_output(path)]
    if len(together) > 1:
        raise InputError(f"{', '.join(together)}: expected at most one of them on standard output")
    plot = paths.get("plot")
    if plot is None:
        return
    if plot != Path("-") and plot.suffix not in (".png", ".svg"):
        raise InputError(f"plot: expected a file name that ends in .png or .svg, was {plot.name!r}")
    if find_spec("matplotlib") is None:
        raise InputError("plot: needs matplotlib, which is not installed: pip install 'mixer-zoo[plots]'")


def sync_file(path: Path) -> None:
    """Return once the content of a file that is already written is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Return once the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_replaceable(path: Path) -> bool:
    try:
        return S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True
