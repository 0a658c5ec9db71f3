"""Writing files such that a crash, a full disk or Ctrl-C at any moment leaves the old content or the new."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from zoo.errors import TrainingError

__all__ = ["replace_file", "sync_file", "sync_folder", "writing"]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system has against a write into one line that names `path`."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror or error}") from error
    except SafetensorError as error:
        raise TrainingError(f"{path}: cannot be written: {error}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        TrainingError: it cannot be written; what was there stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(path.parent)


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
