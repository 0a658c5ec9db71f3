"""Ops that cost the CPU little: a short sequence's kernels end before the next ones are launched."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

__all__ = ["register_op"]

Function = TypeVar("Function", bound=Callable[..., Any])
_library = torch.library.Library("zoo", "FRAGMENT")


def register_op(name: str) -> Callable[[Function], Function]:
    """Register a function as the op `zoo::name`, which neither mutates its arguments nor has a gradient.

    `torch.library.custom_op` does the same and looks at aliases after each call, which takes longer than the launch.
    """

    def register(function: Function) -> Function:
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, function, "CompositeExplicitAutograd")
        return cast(Function, getattr(torch.ops.zoo, name).default)

    return register
