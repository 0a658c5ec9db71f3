"""Tokenized text kept for the next run: one folder for each text and tokenizer, made by one process at a time."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.errors import CorpusError
from zoo.report.files import writing

__all__ = ["cache_folder", "kept"]


def cache_folder(stated: str | None) -> Path:
    """Return where tokens are kept: what the recipe states, else `mixer-zoo/tokens` in the user's cache.

    That is `XDG_CACHE_HOME`, or `.cache` in the home folder.
    """
    if stated is not None:
        return Path(stated).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "mixer-zoo" / "tokens"


def kept(cache: Path, key: str, make: Callable[[Path], object]) -> Path:
    """Return the folder called `key` in the cache, made if it is not there; other processes wait for it meanwhile.

    Args:
        cache: the folder of all.
        key: tells apart what may not be mixed up.
        make: makes the folder at the path that it is given, whole or not at all.

    Raises:
        CorpusError: the cache cannot be written.
    """
    folder = cache / key
    if not folder.is_dir():
        with writing(cache, CorpusError):
            cache.mkdir(parents=True, exist_ok=True)
            with _alone(cache / f".{key}.lock"):
                if not folder.is_dir():  # nor did another process make it while this one waited
                    make(folder)
    return folder


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is in the block; the lock ends with its process at the latest."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
