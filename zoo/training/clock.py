"""The time that training takes."""

import time

from zoo.compiling.report import compiling_seconds

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up stretches of wall time, without what the compiler took of them.

    Args:
        seconds: what earlier stretches came to.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._started: float | None = None

    def start(self) -> None:
        """Begin a stretch, or go on with the one that is running."""
        if self._started is None:
            self._started = time.perf_counter() - compiling_seconds()

    def stop(self) -> None:
        """End the stretch, if one is running."""
        if self._started is not None:
            self.seconds += time.perf_counter() - compiling_seconds() - self._started
            self._started = None
