"""A run that is interrupted where a test wants it."""

from zoo.training import SilentProgress

__all__ = ["StopAt"]


class StopAt(SilentProgress):
    """Ctrl-C after a given step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def advance(self, step: int) -> None:
        if step == self._step:
            raise KeyboardInterrupt
