"""How training shows itself: a bar in a terminal, a line now and then elsewhere, or whatever else takes the calls."""

import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zoo.report.numbers import clock
from zoo.report.tables import GuardedConsole

__all__ = ["LineProgress", "ProgressReporter", "SilentProgress", "TerminalProgress", "make_progress"]


class ProgressReporter(Protocol):
    """Calls that the training loop makes; also the place to hook in other loggers."""

    def start(self, step: int, steps: int) -> None:
        """Training continues after `step` and ends with `steps`."""

    def advance(self, step: int) -> None:
        """Optimiser step number `step` is done."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """A line was added to metrics.jsonl."""

    def finish(self) -> None:
        """Training ended, be it by an error. Called after every `start`."""


class SilentProgress:
    """Shows nothing."""

    def start(self, step: int, steps: int) -> None:
        """See `ProgressReporter`."""

    def advance(self, step: int) -> None:
        """See `ProgressReporter`."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """See `ProgressReporter`."""

    def finish(self) -> None:
        """See `ProgressReporter`."""


class TerminalProgress:
    """A bar with steps, loss, validation bits per byte, tokens a second, time taken and time left."""

    def __init__(self, description: str, console: Console) -> None:
        self._latest = _Latest()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[latest]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(description, start=False, total=None, latest="compiling")

    def start(self, step: int, steps: int) -> None:
        """Show the bar."""
        self._bar.update(self._task, completed=step, total=steps)
        self._bar.start()
        self._bar.start_task(self._task)

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step)

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Show the newest numbers."""
        self._latest.take(record)
        self._bar.update(self._task, latest=str(self._latest))

    def finish(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


class LineProgress:
    """A line at the first metrics, then about every `interval` seconds, and at the end; for logs and pipes."""

    def __init__(self, description: str, console: Console, interval: float = 30.0) -> None:
        self._description = description
        self._console = console
        self._interval = interval
        self._latest = _Latest()
        self._line = ""

    def start(self, step: int, steps: int) -> None:
        """Take note of where training begins."""
        self._first_step, self._steps = step, steps
        self._started = time.monotonic()
        self._next_line = self._started

    def advance(self, step: int) -> None:
        """Print nothing: lines come with metrics."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Print a line if it is time for one."""
        self._latest.take(record)
        now, step = time.monotonic(), record["step"]
        left = self._time_left(step, now)
        self._line = f"{self._description}  step {step}/{self._steps}  {self._latest}{left}"
        if now >= self._next_line and step < self._steps:
            self._next_line = now + self._interval
            self._print()

    def finish(self) -> None:
        """Print the last line."""
        self._print()

    def _print(self) -> None:
        if self._line:
            self._console.print(self._line, highlight=False, markup=False, soft_wrap=True)
        self._line = ""

    def _time_left(self, step: int, now: float) -> str:
        done = step - self._first_step
        if done == 0 or step == self._steps:
            return ""
        return f"  {clock((now - self._started) / done * (self._steps - step))} left"


class _Latest:
    """The newest of each number, as one text."""

    def __init__(self) -> None:
        self._parts: dict[str, str] = {}

    def take(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "train":
            self._parts["loss"] = f"loss {record['loss']:.3f}"
            self._parts["speed"] = f"{record['tokens_per_second']:,.0f} tokens/s"
        else:
            accuracy = record.get("accuracy")  # of tasks
            told = f"{record['bits_per_byte']:.3f} bits/byte" if accuracy is None else f"{accuracy:.1%} right"
            self._parts["bits"] = f"validation {told}"

    def __str__(self) -> str:
        return "  ".join(self._parts[key] for key in ("loss", "bits", "speed") if key in self._parts)


def make_progress(description: str, console: Console | None = None) -> ProgressReporter:
    """Return a bar where `console` (standard error by default) is a terminal, else lines."""
    console = GuardedConsole(stderr=True) if console is None else console
    return TerminalProgress(description, console) if console.is_terminal else LineProgress(description, console)
