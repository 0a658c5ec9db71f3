"""The metrics of a run: JSON lines and, if asked for, TensorBoard events, which resuming takes up where it begins."""

import json
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError
from zoo.reading import read_regular
from zoo.report.files import replace_file, writing

__all__ = ["EventLog", "MetricsLog", "check_tensorboard", "read_metrics"]

_NO_METRICS = ("kind", "step", "tokens", "flops", "seconds")


class MetricsLog:
    """Appends records to a file of JSON lines.

    Args:
        path: the file; made if missing.
        step: what is already known for good, -1 for nothing. Records of later steps, which are about to be made again,
            are dropped, and so is a last line that was torn by a crash.

    Raises:
        TrainingError: the file cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._cut_back(step)
        with writing(path):
            self._file: FileIO = path.open("ab", buffering=0)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record at once, so that whoever follows the file sees whole lines."""
        line = memoryview(json.dumps(record, allow_nan=False).encode() + b"\n")
        with writing(self._path):
            while line:  # a nearly full disk takes part of a line before it refuses the rest
                line = line[self._file.write(line) :]

    def sync(self) -> None:
        """Return once every record is on the disk."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()

    def _cut_back(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = [record for record in read_metrics(self._path) if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept).encode()
        if text != read_regular(self._path):
            replace_file(self._path, text)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run; an empty list where there are none yet.

    A last line that is not whole is left out: a run that is being trained, or was killed, may end in one.
    """
    return list(_whole_records(read_regular(path))) if path.exists() else []


def _whole_records(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            # After a power loss the lines up to the last checkpoint are whole and those behind it may be anything.
            return
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            return
        yield record


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
