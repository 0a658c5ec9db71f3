"""Timers, and what a machine can do at best: a large matrix product and a large copy."""

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

__all__ = [
    "Ceilings", "Run", "Timer", "Timing", "ceilings_on", "gpu_timer", "measure_ceilings", "op_timer",
    "step_timer", "wall_seconds", "wall_timer",
]  # fmt: skip

# In milliseconds: timed runs that would take longer are fewer, though at least so many; what clearing the cache takes.
_LONGEST, _FEWEST, _CLEARING = 1000.0, 3, 0.1
_LONGEST_STEPS = 15.0  # seconds for all timed runs of a whole step


class Timing(NamedTuple):
    """Seconds: the median, and the quantiles at 20% and 80%."""

    median: float
    fast: float
    slow: float


Run = Callable[[], object]
Timer = Callable[[Run], Timing]


class Ceilings(NamedTuple):
    """What the device reached on random numbers, in the same run; shares of what is not known are 0."""

    matmul: float = math.inf  # FLOP/s of a product
    copy: float = math.inf  # bytes/s, read and written
    dtype: str = "bfloat16"  # of the product


def op_timer(repeats: int, device: torch.device, *, graph: bool = False) -> Timer:
    """Time calls of an op: with `gpu_timer`, or on a CPU with `wall_timer`."""
    return gpu_timer(repeats, graph=graph) if device.type == "cuda" else wall_timer(repeats)


def wall_timer(repeats: int) -> Timer:
    """Time with the clock on the wall, for devices that compute while the program waits."""

    def measure(run: Run) -> Timing:
        run()
        return _summary([wall_seconds(run) for _ in range(repeats)])

    return measure


def step_timer(repeats: int, device: torch.device) -> Timer:
    """Time whole steps of a model, one by one, from when the device is idle to when it is idle again.

    The first one is not counted; of long steps there are fewer.
    """

    def measure(run: Run) -> Timing:
        _, first = wall_seconds(run, device), wall_seconds(run, device)
        more = min(repeats, max(1, int(_LONGEST_STEPS / first))) - 1
        return _summary([first, *(wall_seconds(run, device) for _ in range(more))])

    return measure


def wall_seconds(run: Run, device: torch.device | None = None) -> float:
    """Run once; if that is on a GPU, until it is idle."""
    start = time.perf_counter()
    run()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _summary(seconds: list[float]) -> Timing:
    if len(seconds) == 1:
        return Timing(*3 * seconds)
    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    return Timing(deciles[4], deciles[1], deciles[7])


def gpu_timer(repeats: int, *, graph: bool = False) -> Timer:
    """Time between CUDA events around a call, after a warm-up and with a cleared L2 cache.

    Args:
        repeats: about so many timed runs, fewer of long ones.
        graph: record the call into a CUDA graph and time its replays, without what launching costs.
    """
    from triton.testing import do_bench

    def measure(run: Run) -> Timing:
        run = _replay(run) if graph else run
        run()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        estimate = start.elapsed_time(end)
        # do_bench divides this time, in milliseconds, by its own estimate, which includes clearing the cache.
        rep = max((_FEWEST + 0.5) * estimate, min(_LONGEST, repeats * (estimate + _CLEARING)))
        median, fast, slow = (1e-3 * value for value in do_bench(run, rep=rep, quantiles=[0.5, 0.2, 0.8]))
        return Timing(median, fast, slow)

    return measure


def _replay(run: Run) -> Run:
    """Record a call into a CUDA graph, after the runs on a side stream that recording asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measure_ceilings(
    timer: Timer, device: str, *, width: int = 8192, elements: int = 2**31, dtype: torch.dtype = torch.bfloat16
) -> Ceilings:
    """Time a product of two matrices and a copy of bfloat16 numbers, all random.

    Args:
        timer: what times them.
        device: where.
        width: rows and columns of the matrices.
        elements: how many numbers are copied; on a GPU at most an eighth of the memory that is free.
        dtype: of the matrices.
    """
    matmul = 2 * width**3 / _time_matmul(timer, device, width, dtype)
    if device.startswith("cuda"):
        elements = min(elements, torch.cuda.mem_get_info()[0] // 8 // 2)
    source = torch.randn(elements, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / timer(lambda: target.copy_(source)).median
    return Ceilings(matmul, copy, str(dtype).removeprefix("torch."))


def ceilings_on(device: torch.device) -> Ceilings:
    """Measure what a device can do at best, on a CPU in float32 with smaller matrices and copies."""
    if device.type == "cuda":
        return measure_ceilings(gpu_timer(30), str(device))
    return measure_ceilings(wall_timer(3), str(device), width=1024, elements=2**24, dtype=torch.float32)


def _time_matmul(timer: Timer, device: str, width: int, dtype: torch.dtype) -> float:
    a, b, product = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(3))
    return timer(lambda: torch.mm(a, b, out=product)).median
