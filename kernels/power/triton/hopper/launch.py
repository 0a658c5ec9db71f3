"""Launches that cost the CPU little: a short sequence's kernels end before the next ones are launched."""

from typing import Any

from torch import Tensor

__all__ = ["launch"]

_compiled: dict[tuple[Any, ...], Any] = {}


def launch(kernel: Any, programs: int, *arguments: Any, warps: int, **constants: Any) -> None:
    """Launch `kernel[(programs,)](*arguments, **constants)`, whose constants are in the order of its signature.

    What a kernel is compiled for follows from the key here, so that Triton has to find it out once a key only.
    """
    key = (id(kernel), warps, arguments[0].device, *constants.values(), *map(_kind, arguments))
    compiled = _compiled.get(key)
    if compiled is None:
        _compiled[key] = kernel[(programs,)](*arguments, **constants, num_warps=warps)
    else:
        compiled[programs, 1, 1](*arguments, *constants.values())


def _kind(x: Any) -> object:
    """What Triton compiles for: of numbers whether they are 1, or 16 divides them, or they are long."""
    if isinstance(x, Tensor):
        return x.dtype, x.data_ptr() % 16 == 0
    if isinstance(x, int):
        return 1 if x == 1 else (x % 16 == 0, x.bit_length() > 31)
    return type(x)
