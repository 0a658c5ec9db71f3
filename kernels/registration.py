"""Ops of `torch.library`, whose arguments are flat, made from functions that take them in named tuples.

A named tuple's fields are the one place that knows the arguments' order: schema, fake, autograd and FLOP formula all
follow from it.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, Signature
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo.kernels.cache_key import key_compiled_code_by_sources
from zoo.kernels.precision import cast_for_autocast
from zoo.kernels.triton_support import INTERPRETED, TRITON

__all__ = ["count_flops", "custom_op", "flat", "lower_under_autocast", "register_op", "triton_op", "unflatten"]

key_compiled_code_by_sources()

Function = Callable[..., Any]
_library = torch.library.Library("zoo", "FRAGMENT")


def unflatten(arguments: Sequence[Any], *kinds: Any) -> list[Any]:
    """Named tuples of these kinds from their fields, one after the other; any other kind takes one argument."""
    parts, start = [], 0
    for kind in kinds:
        fields = getattr(kind, "_fields", None)
        end = start + (1 if fields is None else len(fields))
        parts.append(arguments[start] if fields is None else kind._make(arguments[start:end]))
        start = end
    return parts


def flat(function: Function) -> Function:
    """The same function as an op has it: of its arguments' fields, and with a plain tuple for a named one."""
    hints = get_type_hints(function)
    result = hints.pop("return")
    members: dict[str, Any] = {}
    for name, kind in hints.items():
        members |= get_type_hints(kind) if hasattr(kind, "_fields") else {name: kind}
    named, kinds = hasattr(result, "_fields"), tuple(hints.values())

    @wraps(function)
    def call(*arguments: Any) -> Any:
        results = function(*unflatten(arguments, *kinds))
        return tuple(results) if named else results

    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in members.items()]
    returned = tuple[(Tensor,) * len(result._fields)] if named else result  # type: ignore[misc]
    call.__signature__ = Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
    return call


def custom_op(name: str, mutates: tuple[str, ...] = ()) -> Callable[[Function], Any]:
    """Register an op that is opaque to the compiler, and writes to the named arguments."""
    return lambda function: torch.library.custom_op(f"zoo::{name}", flat(function), mutates_args=mutates)


def triton_op(name: str) -> Callable[[Function], Any]:
    """Register an op whose body may launch Triton kernels, so that the compiler sees through it to them.

    Where there is nothing to see, without Triton or under its interpreter, the op is opaque.
    """
    if not TRITON or INTERPRETED:
        return custom_op(name)
    return lambda function: torch.library.triton_op(f"zoo::{name}", flat(function), mutates_args=())


def register_op(name: str) -> Callable[[Function], Any]:
    """Register a function of flat arguments as an opaque op that costs the CPU little.

    It does not mutate its arguments, and no result is one of them. `torch.library.custom_op` does the same and looks at
    aliases after each call, which takes longer than a launch: a short sequence's kernels end before the next are
    launched.
    """

    def register(function: Function) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, function, "CompositeExplicitAutograd")
        return getattr(torch.ops.zoo, name).default

    return register


def lower_under_autocast(name: str, op: Function) -> None:
    """Have autocast lower the first three arguments of an op, which are q, k and v.

    Gates and states stay as they are, which `torch.library.register_autocast` cannot express.
    """
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):

        def cast(q: Tensor, k: Tensor, v: Tensor, *rest: Any, device: str = device) -> Any:
            lowered = cast_for_autocast(q, k, v)
            with torch.autocast(device, enabled=False):
                return op(*lowered, *rest)

        _library.impl(name, cast, key)


def count_flops(name: str) -> Callable[[Function], Function]:
    """Register an op's FLOP formula, which gets shapes in its tensors' places."""

    def register(formula: Function) -> Function:
        call = flat(formula)
        register_flop_formula(getattr(torch.ops.zoo, name))(lambda *arguments, **_: call(*arguments))
        return formula

    return register
