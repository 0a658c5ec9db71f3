"""Several processes that train one study: started, watched, told to stop, and listened to where one fails."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch

from zoo.errors import Interruption, TrainingError
from zoo.study.progress import StudyProgress
from zoo.study.status import look
from zoo.study.variants import Part

__all__ = ["UNTRAINABLE", "Crew", "default_processes"]

UNTRAINABLE = 3
"""The exit code of a process that has trained all but variants that cannot be trained where it is."""

_GLANCE = 0.2  # seconds between two looks at whether a process has ended
_LOOK = 2.0  # and at how far the runs are


def default_processes(device: str | None) -> int:
    """Return how many processes train well at the same time: one for each GPU, or, without, for each core.

    Of a device that is named it is one, but for all cores of a CPU.
    """
    if device is None and torch.cuda.is_available():
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if device in (None, "cpu") else 1


class Crew:
    """Processes that share a study's runs through its folder, each with one thread.

    Args:
        parts: of the study, whose `study.yaml` is in its folder.
        folder: of the study.
        progress: told how far it is.
        device: for all of them; None: on a machine with GPUs each in turn, else the CPU.
        early_stop: whether learning rates are halved successively.
        only: patterns of the runs that are trained; none: all.
    """

    def __init__(
        self,
        parts: tuple[Part, ...],
        folder: Path,
        progress: StudyProgress,
        *,
        device: str | None,
        early_stop: bool,
        only: Sequence[str] = (),
    ) -> None:
        self._parts, self._folder, self._progress = parts, folder, progress
        self._device, self._early_stop, self._only = device, early_stop, only
        self._running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def work(self, count: int) -> None:
        """Start so many processes and return once all have ended.

        Raises:
            TrainingError: one of them failed; the others have finished what they were at.
            Interruption: a signal came, or the time is up; it was passed on, and every step is saved.
        """
        try:
            for number in range(count):
                self._start(number, count)
            self._watch()
        except BaseException as error:
            at_once = isinstance(error, Interruption) and error.at_once
            self._stop(signal.SIGKILL if at_once else signal.SIGTERM)
            raise
        finally:
            for _, log in self._running:
                log.close()

    def _start(self, number: int, count: int) -> None:
        options = map(str, (self._folder, number, count, int(self._early_stop), self._device_of(number), os.getpid()))
        log = tempfile.TemporaryFile()  # noqa: SIM115 (closed when all have ended)
        process = subprocess.Popen(
            [sys.executable, "-m", "zoo.study.member", *options, *self._only],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"},
            start_new_session=True,  # Ctrl-C comes to this process, which passes it on
        )  # fmt: skip
        self._running.append((process, log))

    def _device_of(self, number: int) -> str:
        if self._device is None and torch.cuda.is_available():
            return f"cuda:{number % torch.cuda.device_count()}"
        return self._device or ""

    def _watch(self) -> None:
        next_look = 0.0
        while any(process.poll() is None for process, _ in self._running):
            # One that has said what it could not train has trained the rest; anything else is of all of them.
            failed = next((each for each in self._running if each[0].poll() not in (None, 0, UNTRAINABLE)), None)
            if failed is not None:
                raise TrainingError(_last_line(*failed))
            if time.monotonic() >= next_look:
                self._progress.show(look(self._parts, self._folder))
                next_look = time.monotonic() + _LOOK
            time.sleep(_GLANCE)
        failed = next((each for each in self._running if each[0].poll()), None)
        if failed is not None:
            raise TrainingError(_last_line(*failed))

    def _stop(self, number: signal.Signals) -> None:
        """Pass a signal on, and wait until every process has ended of it."""
        for process, _ in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(number)
        try:
            for process, _ in self._running:
                process.wait()
        except Interruption:  # a second signal: nothing more is waited for
            for process, _ in self._running:
                process.kill()


def _last_line(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> str:
    """Return what a process that failed said last."""
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if process.returncode < 0:
        return f"a process of the study was ended by {signal.Signals(-process.returncode).name}"
    return lines[-1].removeprefix("Error: ") if lines else f"a process of the study ended with {process.returncode}"
