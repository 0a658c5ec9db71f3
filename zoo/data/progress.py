"""A line on standard error while much text is read: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from zoo.report.numbers import duration, size
from zoo.report.tables import GuardedConsole

__all__ = ["telling"]

_PATIENCE = 1.0  # seconds before anything is shown: most texts are read by then
_EVERY = 30.0  # seconds between two lines where there is no terminal


@contextmanager
def telling(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many more bytes are done.

    Args:
        what: is being done, such as "tokenizing".
        total: bytes that there are; None: not known.
    """
    console = GuardedConsole(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(), console=console, transient=True,
    )  # fmt: skip
    task = bar.add_task(what, total=total)
    start = time.monotonic()
    done, due = 0, start + (_PATIENCE if console.is_terminal else _EVERY)

    def advance(byte_count: int) -> None:
        nonlocal done, due
        done += byte_count
        bar.advance(task, byte_count)
        now = time.monotonic()
        if now < due:
            return
        due = now + _EVERY
        if console.is_terminal:
            bar.start()
            return
        share = f" of {size(total)} ({100 * done // max(total, 1)}%)" if total is not None else ""
        print(f"{what}: {size(done)}{share} in {duration(now - start)}", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
