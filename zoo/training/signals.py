"""Signals that ask training to end: acted on between two steps, so that no step is lost."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from zoo.errors import InputError, Interruption, ZooError

__all__ = ["SignalWatch", "stopping_after", "watching_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_UNHANDLED = (signal.SIG_DFL, signal.default_int_handler)
_current: "SignalWatch | None" = None


class SignalWatch:
    """Takes note of the first signal while it is held, and lets it end the program at once otherwise."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The signal that came first."""
        self._is_held = False

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Take note of the first signal instead of raising it, which is done at the end where the body did not.

        Raises:
            Interruption: a signal came. A second one is raised wherever the program is.
        """
        self._is_held = True
        try:
            yield
        except Exception as error:
            # Ctrl-C goes to a compiler's processes too, which fail of it before the step is done.
            if self.received is None or isinstance(error, ZooError):
                raise
            raise Interruption(self.received) from error
        finally:
            self._is_held = False
        if self.received is not None:
            raise Interruption(self.received)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        is_second = self.received is not None
        if is_second and number == signal.SIGUSR1:
            return  # the time is up for what is ending already
        self.received = signal.Signals(number)
        if is_second or not self._is_held:
            raise Interruption(self.received, at_once=is_second)


@contextmanager
def watching_signals() -> Iterator[SignalWatch]:
    """Watch for SIGINT (Ctrl-C), SIGTERM and SIGHUP until the end of the body; inside of another, it is the same watch.

    SIGUSR1, which clusters send before the time is up, and `stopping_after` too, is one of them. Signals that the
    program handles itself or ignores (as under nohup) stay as they are, and so do all of them off the main thread,
    where Python takes no handlers.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current or SignalWatch()
        return
    _current = SignalWatch()
    former = {number: signal.getsignal(number) for number in _SIGNALS}
    former = {number: handler for number, handler in former.items() if handler in _UNHANDLED}
    try:
        for number in former:
            signal.signal(number, _current._handle)
        yield _current
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        _current = None


@contextmanager
def stopping_after(seconds: float) -> Iterator[None]:
    """Send SIGUSR1 to this process after so many seconds, if the body is not done by then.

    Inside of `watching_signals` it ends the body as any other signal there.

    Raises:
        InputError: no signal would be noticed, off the main thread or because the program handles it itself.
    """
    if _current is None or signal.getsignal(signal.SIGUSR1) != _current._handle:
        raise InputError("seconds: expected none off the main thread, or where the program handles SIGUSR1 itself")
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
