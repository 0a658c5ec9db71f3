"""Launches that cost the CPU little: a short sequence's kernels end before the next ones are launched."""

from functools import lru_cache, reduce
from operator import or_
from typing import Any

from torch import Tensor

__all__ = ["launch"]

_compiled: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any, programs: int, tensors: tuple[Tensor, ...], numbers: tuple[float, ...], *, warps: int, **constants: Any
) -> None:
    """Launch `kernel[(programs,)](*tensors, *numbers, **constants)`, whose constants are in the order of its signature.

    What a kernel is compiled for follows from the key here, so that Triton has to find it out once a key only.
    """
    values = tuple(constants.values())
    addresses = [x.data_ptr() for x in tensors]
    # Nearly all are aligned: one look at all of them.
    misaligned = tuple(x % 16 for x in addresses) if reduce(or_, addresses) % 16 else None
    key = (id(kernel), warps, tensors[0].device, values, _kinds(numbers), misaligned, *[x.dtype for x in tensors])
    compiled = _compiled.get(key)
    if compiled is None:
        _compiled[key] = kernel[(programs,)](*tensors, *numbers, **constants, num_warps=warps)
    else:
        compiled[programs, 1, 1](*tensors, *numbers, *values)


@lru_cache(maxsize=1024)
def _kinds(numbers: tuple[float, ...]) -> tuple[object, ...]:
    """What Triton compiles for: of numbers whether they are 1, or 16 divides them, or they are long."""
    return tuple(
        float if isinstance(x, float) else 1 if x == 1 else (x % 16 == 0, x.bit_length() > 31) for x in numbers
    )
