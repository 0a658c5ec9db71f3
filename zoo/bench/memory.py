"""The most memory that a call has at a time: as a GPU counts it, or as Linux tells it of a process of its own."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from zoo.errors import InputError

__all__ = ["gpu_peak_bytes", "process_peak_bytes"]


def gpu_peak_bytes(call: Callable[[], object]) -> int:
    """Return the most memory that a call has at a time on the GPU beyond what is there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def process_peak_bytes(prepare: Callable[[], object], call: Callable[[], object]) -> int:
    """Return how much resident memory grows at most while `call` runs, after `prepare`, in a process of its own.

    Raises:
        InputError: on another system than Linux, or when memory does not suffice.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise InputError("memory: can be measured on Linux only; leave it out here")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak_bytes, args=(prepare, call, sender))
    process.start()
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError:
        raise InputError("memory: measuring it failed, probably for lack of it") from None
    finally:
        process.join()


def _send_peak_bytes(prepare: Callable[[], object], call: Callable[[], object], sender: Connection) -> None:
    prepare()
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak afresh
    call()
    sender.send(_resident_bytes("VmHWM") - before)


def _resident_bytes(field: str) -> int:
    """VmRSS (resident now) or VmHWM (its peak) of this process, from Linux's /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise InputError(f"memory: /proc/self/status has no {field}; leave memory out on this system")
