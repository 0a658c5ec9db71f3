"""The metrics of a run: JSON lines and, if asked for, TensorBoard events, which resuming takes up where it begins."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import CheckpointError, ConfigError
from zoo.reading import read_regular
from zoo.report.files import replace_file, writing

__all__ = ["EventLog", "Extent", "MetricsLog", "check_metrics", "check_tensorboard", "extent_of", "read_metrics"]

_NO_METRICS = ("kind", "step", "tokens", "flops", "seconds")


class Extent(NamedTuple):
    """A file as it was at some moment, to be told from what became of it."""

    size: int
    """Bytes."""
    sha256: str
    """Of all of them, as hexadecimal."""


class MetricsLog:
    """Appends records to a file of JSON lines.

    Args:
        path: the file; made if missing.
        step: what is already known for good, -1 for nothing. Records of later steps, which are about to be made again,
            are dropped, and so is a last line that was torn by a crash.
        extent: of the file at that step, where that was kept; what comes after it is dropped, whatever it is.

    Raises:
        CheckpointError: lines up to `step` are damaged or gone.
        TrainingError: the file cannot be written.
    """

    def __init__(self, path: Path, step: int, extent: Extent | None = None) -> None:
        self._path = path
        kept = self._cut_back(step, extent)
        self._size, self._digest = len(kept), hashlib.sha256(kept)
        with writing(path):
            self._file: FileIO = path.open("ab", buffering=0)

    def extent(self) -> Extent:
        """Return how far the file goes by now, by what was written to it."""
        return Extent(self._size, self._digest.hexdigest())

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record at once, so that whoever follows the file sees whole lines."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        rest = memoryview(line)
        with writing(self._path):
            while rest:  # a nearly full disk takes part of a line before it refuses the rest
                rest = rest[self._file.write(rest) :]
        self._size += len(line)
        self._digest.update(line)

    def sync(self) -> None:
        """Return once every record is on the disk."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()

    def _cut_back(self, step: int, extent: Extent | None) -> bytes:
        """Return what is kept, which is then all that the file holds."""
        content = read_regular(self._path) if self._path.exists() else b""
        if extent is not None:
            kept = content[: extent.size]
            _check(self._path, kept, extent, f"up to step {step}")
        elif step < 0:
            kept = b""
        else:  # of an older version, which knew no extents
            lines = [record for record in _whole_records(self._path, content) if record["step"] <= step]
            kept = "".join(json.dumps(record) + "\n" for record in lines).encode()
        if kept != content:
            replace_file(self._path, kept)
        return kept


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run; an empty list where there are none yet.

    An end that is not whole is left out: a run that is being trained, or was killed, may have one.

    Raises:
        CheckpointError: the file cannot be read, or a line is damaged and one after it is not.
    """
    try:
        return list(_whole_records(path, read_regular(path))) if path.exists() else []
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def extent_of(path: Path) -> Extent:
    """Return how far a file goes and what it holds; one that is not there holds nothing."""
    content = read_regular(path) if path.exists() else b""
    return Extent(len(content), hashlib.sha256(content).hexdigest())


def check_metrics(path: Path, extent: Extent) -> None:
    """Check that the metrics of a finished run are what they were.

    Raises:
        CheckpointError: they are not.
    """
    try:
        content = read_regular(path) if path.exists() else b""
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    _check(path, content, extent, "of a finished run")


def _check(path: Path, content: bytes, extent: Extent, which: str) -> None:
    if extent != (len(content), hashlib.sha256(content).hexdigest()):
        what = "are not those that were written" if path.exists() else "are gone"
        raise CheckpointError(
            f"{path}: the lines {which} {what}; put the file back from a copy, or delete {path.parent} to train anew"
        )


def _whole_records(path: Path, text: bytes) -> Iterator[dict[str, Any]]:
    """Yield records up to the end of what is whole: after a power loss what follows it may be anything but records."""
    lines = text.splitlines(keepends=True)
    records = [_record(line) for line in lines]
    while records and records[-1] is None:
        records.pop()
    for number, record in enumerate(records, 1):
        if record is None:
            raise CheckpointError(
                f"{path}, line {number}: is damaged, and lines after it are not; put the file back from a copy, or "
                f"delete {path.parent} to train anew"
            )
        yield record


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("kind"), str)
    return record if whole else None


class EventLog:
    """Appends records to a folder of TensorBoard events, as scalars such as `train/loss` by optimiser step.

    Args:
        folder: holds one file for every time that training was started; made if missing.
        step: what is already known for good, -1 for nothing. TensorBoard is told to forget events of later steps, which
            are about to be made again.

    Raises:
        TrainingError: the folder cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

        self._folder = folder
        with writing(folder):
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write the metrics of one record at once; where it stands in the run is its step alone."""
        with writing(self._folder):
            for name, value in record.items():
                if name not in _NO_METRICS:
                    self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])
            self._writer.flush()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with writing(self._folder):
            self._writer.close()


def check_tensorboard() -> None:
    """Check that events can be written, before anything else is.

    Raises:
        ConfigError: tensorboard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "training.tensorboard needs tensorboard, which is not installed: pip install 'mixer-zoo[tensorboard]'"
        )
