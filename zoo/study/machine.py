"""What a variant is trained on: versions and hardware, kept with its run."""

import platform
from pathlib import Path

import torch

from zoo.config import load_yaml
from zoo.kernels.devices import usable_device
from zoo.report.files import replace_file
from zoo.study.results import Machine
from zoo.version import __version__

__all__ = ["describe_machine", "read_machine", "write_machine"]

_FILE = "machine.yaml"


def describe_machine(device: str | None = None) -> Machine:
    """Name the versions and the hardware that training uses, on `device` or where it is by default.

    Raises:
        InputError: there is no such device.
    """
    place = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Machine(
        zoo=__version__,
        torch=str(torch.__version__),
        python=platform.python_version(),
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else _processor_name(),
        threads=torch.get_num_threads(),
    )


def write_machine(folder: Path, machine: Machine) -> None:
    """Write into a run's folder what it is trained on.

    Raises:
        TrainingError: the file cannot be written.
    """
    replace_file(folder / _FILE, machine.to_yaml().encode())


def read_machine(folder: Path) -> Machine:
    """Return what a run was trained on; a run that `zoo train` made does not say, and is taken for this machine's."""
    path = folder / _FILE
    return Machine.from_mapping(load_yaml(path), str(path)) if path.exists() else describe_machine()


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown processor"
