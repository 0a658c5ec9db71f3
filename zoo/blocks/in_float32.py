"""How parameters of fewer bits start: as those of float32 do, and rounded."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import nn

__all__ = ["computed_in_float32", "in_float32"]

Module = TypeVar("Module", bound=nn.Module)
Rest = ParamSpec("Rest")
_HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def computed_in_float32(module: nn.Module) -> Iterator[None]:
    """Have a module's parameters of 16 bits in float32, to be rounded at the end, and float32 as the default dtype.

    Some starts, such as orthogonal ones, have no form in 16 bits, and others lose what tells channels apart.
    """
    default, short = torch.get_default_dtype(), [x for x in module.parameters() if x.dtype in _HALVES]
    stored = [x.data for x in short]
    if default in _HALVES:
        torch.set_default_dtype(torch.float32)
    try:
        for parameter in short:
            parameter.data = parameter.data.float()
        yield
    finally:
        torch.set_default_dtype(default)
        for parameter, data in zip(short, stored, strict=True):
            data.copy_(parameter.data)
            parameter.data = data


def in_float32(
    initialize: Callable[Concatenate[Module, Rest], None],
) -> Callable[Concatenate[Module, Rest], None]:
    """Let a module's method start its parameters in float32, and round them where they have 16 bits."""

    @functools.wraps(initialize)
    def rounded(module: Module, /, *arguments: Rest.args, **options: Rest.kwargs) -> None:
        with computed_in_float32(module):
            initialize(module, *arguments, **options)

    return cast("Callable[Concatenate[Module, Rest], None]", rounded)
