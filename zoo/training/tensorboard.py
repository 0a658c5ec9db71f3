"""The metrics of a run as TensorBoard events, beside metrics.jsonl. Needs tensorboard, which is optional."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError
from zoo.report.files import writing

__all__ = ["EventLog", "check_tensorboard"]

_NO_METRICS = ("kind", "step", "tokens", "flops", "seconds")


def check_tensorboard() -> None:
    """Check that events can be written, before anything else is.

    Raises:
        ConfigError: tensorboard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "training.tensorboard needs tensorboard, which is not installed: pip install 'mixer-zoo[tensorboard]'"
        )


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
