"""bfloat16 under Triton's interpreter, which multiplies matrices of it as if their bits were integers, and cuts it off.

With this, kernels that are for a GPU's bfloat16 are held to the error law where there is none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

__all__ = ["bfloat16_as_on_a_gpu"]


def _widened(x: TensorHandle) -> TensorHandle:
    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


@contextmanager
def bfloat16_as_on_a_gpu() -> Iterator[None]:
    """Products of bfloat16 are those of its numbers, and float32 becomes bfloat16 by rounding to nearest."""
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def rounded(self: Any, x: TensorHandle, dtype: Any) -> TensorHandle:
        if x.dtype.scalar != tl.float32 or dtype.scalar != tl.bfloat16:
            return cast(self, x, dtype)
        bits = torch.from_numpy(np.ascontiguousarray(x.data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return TensorHandle(bits.reshape(x.data.shape), dtype.scalar)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            InterpreterBuilder, "create_dot", lambda self, a, b, *rest: dot(self, _widened(a), _widened(b), *rest)
        )
        monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounded)
        monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", rounded)
        yield
