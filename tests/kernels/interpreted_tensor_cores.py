"""Products of float32 under Triton's interpreter with the digits that a GPU's tensor cores have.

The interpreter multiplies float32 as it is, whatever precision a kernel asks for. With this, kernels whose products are
TensorFloat32 are held to the error law where there is no GPU: it gave the errors that one had been seen to have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

__all__ = ["tensor_cores_as_on_a_gpu"]

_CUT = 0x1FFF  # bits of float32 that TensorFloat32 has not


def _cut_off(x: np.ndarray) -> np.ndarray:
    """As tensor cores do with what they are given."""
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(~_CUT & 0xFFFFFFFF)).view(np.float32)


def _rounded(x: np.ndarray) -> np.ndarray:
    """To the nearest, as Triton does where it takes a number apart."""
    return _cut_off((np.ascontiguousarray(x).view(np.uint32) + np.uint32((_CUT + 1) // 2)).view(np.float32))


def _in_three(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    X, Y = _rounded(x), _rounded(y)
    return np.matmul(_rounded(x - X), Y) + np.matmul(X, _rounded(y - Y)) + np.matmul(X, Y)


@contextmanager
def tensor_cores_as_on_a_gpu() -> Iterator[None]:
    """Products of float32 are TensorFloat32, or three of them, where kernels say so."""
    whole = InterpreterBuilder.create_dot

    def dot(self: Any, a: TensorHandle, b: TensorHandle, total: TensorHandle, precision: Any, *rest: Any) -> Any:
        name = str(precision).rpartition(".")[2].upper()
        if a.data.dtype != np.float32 or b.data.dtype != np.float32 or name not in ("TF32", "TF32X3"):
            return whole(self, a, b, total, precision, *rest)
        product = _in_three(a.data, b.data) if name == "TF32X3" else np.matmul(_cut_off(a.data), _cut_off(b.data))
        return TensorHandle((product + total.data).astype(total.data.dtype), total.dtype.scalar)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
        yield
