"""Functions run in a process of their own, which needs no imports anew."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

__all__ = ["exit_status", "forked", "kill_self", "memory_taken"]

_CONTEXT = multiprocessing.get_context("fork")


def forked(*functions: Callable[[], object]) -> list[object]:
    """Run functions side by side, each in a process, and return what they return."""
    started = []
    for function in functions:
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_send, args=(function, sender))
        process.start()
        sender.close()
        started.append((process, receiver))
    results = [receiver.recv() for _, receiver in started]
    for process, _ in started:
        process.join()
    return results


def exit_status(function: Callable[[], object]) -> int:
    """Run a function in a process, and return its exit code: of a signal, minus its number."""
    process = _CONTEXT.Process(target=function)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def memory_taken(little: Callable[[], object], much: Callable[[], object]) -> int:
    """Return by how many bytes more a process grows while it runs the second function, after the first."""

    def measured() -> int:
        little()  # with which the pages of libraries come in
        before = _peak()
        much()
        return _peak() - before

    (taken,) = forked(measured)
    assert isinstance(taken, int)
    return taken


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _send(function: Callable[[], object], sender: Connection) -> None:
    with suppress(BrokenPipeError):
        sender.send(function())


def kill_self(*_: object) -> None:
    """End this process as if it were killed."""
    os.kill(os.getpid(), signal.SIGKILL)
