# mypy: ignore-errors
"""Nouns of kernels: classes whose fields are values on the device, or constants."""

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language.core import _aggregate, base_value

__all__ = ["Value", "aggregate"]

Value = gl.tensor | gl.constexpr  # a constant where the kernel was compiled for one, as it is for sizes of 1


def aggregate(cls: type) -> Any:
    """Make cls an aggregate of Triton's, constructed from its fields in their order or by name.

    Its methods are compiled into kernels. Fields never change: a new value takes a new aggregate.
    """
    fields = cls.__annotations__

    @gluon.constexpr_function
    def construct(self, *values, **named):
        for name, value in dict(zip(fields, values, strict=False), **named).items():
            setattr(self, name, value if isinstance(value, base_value) else gl.constexpr(value))

    cls.__init__ = construct
    return _aggregate(cls)
