"""Writing a file whole or not at all."""

import os
from pathlib import Path

from zoo.errors import CorpusError

__all__ = ["write_atomically"]


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`, replacing what is there; if that fails, what is there stays.

    Raises:
        CorpusError: the file cannot be written, for example because the disk is full.
    """
    # Opened by its own name rather than as a temporary file, so that the usual permissions apply.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        try:
            with open(unfinished, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise CorpusError(f"{str(path)!r}: cannot be written: {error.strerror}") from error
