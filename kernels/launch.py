"""Launches: seen by the compiler where it traces them, and of little cost to the CPU inside an op opaque to it."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, reduce
from operator import or_
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton

__all__ = [
    "Launch", "bound", "compile_together", "compile_what_fits", "current_stream", "launch", "launcher", "rehearsal",
    "unseen",
]  # fmt: skip

_compiled: dict[tuple[Any, ...], Any] = {}
_here = threading.local()


class Launch(NamedTuple):
    """What was, or would be, launched."""

    key: tuple[Any, ...]  # what the kernel is compiled for
    kernel: Any
    grid: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    numbers: tuple[float, ...]
    constants: dict[str, Any]
    options: dict[str, int]


@contextmanager
def unseen(device: torch.device) -> Iterator[None]:
    """Within an op that is opaque to the compiler: `launcher` launches there and then, on that device."""
    before = getattr(_here, "unseen", False)
    _here.unseen = True
    try:
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            yield
        else:
            with torch.cuda.device(device):
                yield
    finally:
        _here.unseen = before


@contextmanager
def rehearsal() -> Iterator[list[Launch]]:
    """Write down what an op's body launches, on fake tensors, and launch nothing."""
    launches: list[Launch] = []
    with unseen(torch.device("meta")):
        _here.rehearsed = launches
        try:
            yield launches
        finally:
            _here.rehearsed = None


def compile_together(launches: Iterable[Launch], device: torch.device) -> None:
    """Compile what is not compiled yet, each kernel in a thread of its own: the compilers mostly leave Python alone."""
    missing = {each.key: each for each in launches if each.key not in _compiled}
    if len(missing) < 2:
        return
    with ThreadPoolExecutor(len(missing)) as threads:
        kernels = threads.map(lambda each: _build(each, device), missing.values())
        _compiled.update(zip(missing, kernels, strict=True))


def compile_what_fits(launches: Iterable[Launch], device: torch.device, refusals: tuple[type[Exception], ...]) -> None:
    """As `compile_together`, for sizes that are tried: a kernel that a GPU refuses with one of these is left out."""
    missing = {each.key: each for each in launches if each.key not in _compiled}

    def attempt(each: Launch) -> Any:
        try:
            return _build(each, device)
        except refusals:
            return None

    with ThreadPoolExecutor() as threads:
        kernels = zip(missing, threads.map(attempt, missing.values()), strict=True)
        _compiled.update({key: kernel for key, kernel in kernels if kernel is not None})


def _build(each: Launch, device: torch.device) -> Any:
    dtypes = [x.dtype for x in each.tensors]
    with torch.cuda.device(device):  # threads begin with the first
        kernel = each.kernel.warmup(*dtypes, *each.numbers, grid=each.grid, **each.constants, **each.options)
        _ = kernel.run  # loads it, which takes a C compiler in some versions of Triton
    return kernel


def bound(launch: Launch) -> Any:
    """The compiled kernel of a launch, bound to its grid: takes arguments and a stream. None if not compiled.

    Without Triton's hooks for its own profiler, which take the CPU as long as the launch itself.
    """
    compiled = _compiled.get(launch.key)
    if compiled is None:
        return None
    grid, no_hooks = (*launch.grid, 1, 1)[:3], (None, None, None)
    _ = compiled[grid]  # loads it
    launcher, function, metadata = compiled.run, compiled.function, compiled.packed_metadata

    def run(*arguments: Any, stream: int) -> None:
        launcher(*grid, stream, function, metadata, *no_hooks, *arguments)

    return run


def current_stream(device: torch.device) -> int:
    """The stream that kernels are launched on."""
    return int(triton.runtime.driver.active.get_current_stream(device.index))


def launcher(kernel: Any) -> Any:
    """Return what is called as a Triton kernel is, `launcher(kernel)[grid](*tensors, *numbers, **constants)`."""
    return _Launcher(kernel) if getattr(_here, "unseen", False) else wrap_triton(kernel)


class _Launcher:
    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> "_Launcher":
        self.grid = grid
        return self

    def __call__(
        self, *arguments: Any, num_warps: int = 4, num_stages: int | None = None, maxnreg: int | None = None,
        launch_pdl: bool = False, **constants: Any,
    ) -> None:  # fmt: skip
        count = next((i for i, x in enumerate(arguments) if not isinstance(x, Tensor)), len(arguments))
        tensors, numbers = arguments[:count], arguments[count:]
        options: dict[str, Any] = {
            "warps": num_warps,
            "stages": num_stages,
            "registers": maxnreg,
            "overlaps": launch_pdl,
        }
        launch(self.kernel, self.grid, tensors, numbers, **options, **constants)


def launch(
    kernel: Any, grid: tuple[int, ...], tensors: tuple[Tensor, ...], numbers: tuple[float, ...], *,
    warps: int, stages: int | None = None, registers: int | None = None, overlaps: bool = False, **constants: Any,
) -> None:  # fmt: skip
    """Launch `kernel[grid](*tensors, *numbers, **constants)`, whose constants are in the order of its signature.

    One that overlaps may begin while the launch before it ends, and waits for it by itself.

    What a kernel is compiled for follows from the key here, so that Triton has to find it out once a key only.
    """
    values, dtypes = tuple(constants.values()), [x.dtype for x in tensors]
    rehearsed = getattr(_here, "rehearsed", None)
    addresses = [0] if rehearsed is not None else [x.data_ptr() for x in tensors]
    # Nearly all are aligned: one look at all of them.
    misaligned = tuple(x % 16 for x in addresses) if reduce(or_, addresses) % 16 else None
    key = (
        id(kernel),
        warps,
        stages,
        registers,
        overlaps,
        tensors[0].device,
        values,
        _kinds(numbers),
        misaligned,
        *dtypes,
    )
    compiled = _compiled.get(key)
    if compiled is not None and rehearsed is None:
        compiled[(*grid, 1, 1)[:3]](*addresses, *numbers, *values)
        return
    assert tuple(kernel.arg_names[-len(constants) :]) == tuple(constants), kernel.__name__
    asked = {"num_warps": warps, "num_stages": stages, "maxnreg": registers, "launch_pdl": overlaps or None}
    options = {name: number for name, number in asked.items() if number is not None}
    if rehearsed is None:
        _compiled[key] = kernel[grid](*tensors, *numbers, **constants, **options)
    else:
        rehearsed.append(Launch(key, kernel, grid, tensors, numbers, constants, options))


@lru_cache(maxsize=1024)
def _kinds(numbers: tuple[float, ...]) -> tuple[object, ...]:
    """What Triton compiles for: of numbers whether they are 1, or 16 divides them, or they are long."""
    return tuple(
        float if isinstance(x, float) else 1 if x == 1 else (x % 16 == 0, x.bit_length() > 31) for x in numbers
    )
