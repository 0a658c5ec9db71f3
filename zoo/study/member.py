"""`python -m zoo.study.member`: one of several processes of a study, started by `zoo.study.processes`."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from zoo.config import load_yaml
from zoo.errors import Interruption, UntrainableError, ZooError
from zoo.recipe.study import Study
from zoo.study.processes import UNTRAINABLE
from zoo.study.run import work_on

__all__ = ["main"]

_GLANCE = 1.0  # seconds between two looks at whether the process that started this one is there


def main(folder: str, number: str, count: str, early_stop: str, device: str, parent: str, *only: str) -> int:
    """Train runs of the study in a folder until none is left or the parent is gone, and return the exit code."""
    _end_with(int(parent))
    torch.set_num_threads(1)
    place = Path(folder)
    try:
        study = Study.from_mapping(load_yaml(place / "study.yaml"), str(place / "study.yaml"))
        among = (int(number), int(count))
        work_on(study, place, device=device or None, early_stop=early_stop == "1", only=only, place=among)
    except ZooError as error:
        print("Error:", " ".join(str(error).split()), file=sys.stderr)
        return UNTRAINABLE if isinstance(error, UntrainableError) else 2
    except Interruption as error:
        return 128 + error.signal
    return 0


def _end_with(parent: int) -> None:
    """End this process, its step saved, when the one that started it is gone, however that came."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_GLANCE)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
