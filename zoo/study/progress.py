"""How a study shows itself while it runs: how many runs have ended, what is in training, and the time that is left."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from zoo.report.numbers import counted, hours
from zoo.report.terminal import printable
from zoo.study.paused import Paused
from zoo.study.status import RunProgress, StudyStatus

__all__ = ["StudyProgress", "Watched", "overall"]

_INTERVAL = 30.0  # seconds between two lines where there is no terminal


def overall(status: StudyStatus) -> str:
    """Say how far a study is, in a line of at most 80 characters: 3 of 12 runs done, 2 in training, 4:10 left."""
    done = f"{status.ended} of {counted(len(status.runs), 'run')} done"
    parts = [done, *(f"{status.count(state)} {state}" for state in ("diverged", "stopped") if status.count(state))]
    if running := status.count("running"):
        parts.append(f"{running} in training")
    left = status.seconds_left
    if status.ended < len(status.runs) and left is not None:
        parts.append(f"{hours(left)} left")
    return ", ".join(parts)


class StudyProgress:
    """Lines at the bottom of a terminal, or one now and then elsewhere. Ends with the body of `with`.

    Args:
        name: of the study.
        console: where to.
    """

    def __init__(self, name: str, console: Console) -> None:
        self._name, self._console = name, console
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        self._next = 0.0

    def __enter__(self) -> "StudyProgress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, status: StudyStatus, latest: str = "") -> None:
        """Show how far the study is, the runs that are in training and, of this process's own, the newest numbers."""
        head = f"{self._name}: {overall(status)}"
        if self._live is not None:
            running = [_line(run) for run in status.runs if run.state == "running"]
            lines = [head, *running, *([latest] if latest else [])]
            # Long names go on in the next line: nothing is cut off, however narrow the terminal.
            self._live.update(Text(printable("\n".join(lines)), overflow="fold"), refresh=True)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _INTERVAL
            self.say(head)

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Watched:
    """A run's progress as part of a study's: its calls are passed on, and stop training where the run has to wait.

    Args:
        shown: the study's.
        status: of the study when the run begins, in which it is in training.
        name: of the run.
        until: the step after which it has to wait for others; None: none.
    """

    def __init__(self, shown: StudyProgress, status: StudyStatus, name: str, until: int | None) -> None:
        self._shown, self._status, self._name, self._until = shown, status, name, until
        self._numbers: dict[str, str] = {}

    def start(self, step: int, steps: int) -> None:
        """See `ProgressReporter`."""
        self._show(step, None)

    def advance(self, step: int) -> None:
        """See `ProgressReporter`.

        Raises:
            Paused: the run has to wait for others.
        """
        if self._until is not None and step >= self._until:
            raise Paused

    def metrics(self, record: Mapping[str, Any]) -> None:
        """See `ProgressReporter`."""
        if record["kind"] == "train":
            self._numbers["loss"] = f"loss {record['loss']:.3f}"
            self._numbers["speed"] = f"{record['tokens_per_second']:,.0f} tokens/s"
        else:
            self._numbers["bits"] = f"validation {record['bits_per_byte']:.3f}"
        self._show(record["step"], record["seconds"])

    def finish(self) -> None:
        """See `ProgressReporter`."""

    def _show(self, step: int, seconds: float | None) -> None:
        self._status = _moved(self._status, self._name, step, seconds)
        latest = [self._numbers[key] for key in ("loss", "bits", "speed") if key in self._numbers]
        self._shown.show(self._status, "  ".join(latest))


def _line(run: RunProgress) -> str:
    return f"  {run.name}  step {run.step:,}/{run.steps:,}"


def _moved(status: StudyStatus, name: str, step: int, seconds: float | None) -> StudyStatus:
    """Return a status in which one run is in training and has come so far."""
    runs = []
    for run in status.runs:
        if run.name == name:
            run = replace(run, state="running", step=step, seconds=run.seconds if seconds is None else seconds)
        runs.append(run)
    return replace(status, runs=tuple(runs))
