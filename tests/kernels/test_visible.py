"""Kernels that the compiler takes into its own code, or could: it takes what they name along, but no classes."""

import ast
import inspect
import textwrap
from types import ModuleType
from typing import Any

import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from zoo.kernels import cross_entropy_rows
from zoo.kernels.delta.triton import passes as delta_passes
from zoo.kernels.delta.triton import scan as delta_scan
from zoo.kernels.power.triton import (
    columns,
    gate_gradient,
    gate_sums,
    key_gradient,
    output,
    output_gradient,
    query_gradient,
    scan,
    sums,
    value_gradient,
)
from zoo.kernels.rwkv7.triton import passes as rwkv7_passes

MODULES = (
    columns, cross_entropy_rows, delta_passes, delta_scan, gate_gradient, gate_sums, key_gradient, output,
    output_gradient, query_gradient, rwkv7_passes, scan, sums, value_gradient,
)  # fmt: skip
KERNELS = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if name.endswith("_kernel")
}
CARRIED = (JITFunction, InterpretedFunction, tl.constexpr, int, float, str)


def named(function: Any) -> dict[str, Any]:
    """What a kernel's body takes from its file, by name; annotations aside."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function.fn)))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    names = {node.id for line in definition.body for node in ast.walk(line) if isinstance(node, ast.Name)}
    return {name: function.fn.__globals__[name] for name in names if name in function.fn.__globals__}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_name_functions_and_numbers_alone(kernel: str) -> None:
    waiting, seen = [KERNELS[kernel]], set()
    while waiting:
        function = waiting.pop()
        for name, value in named(function).items():
            assert value is tl or isinstance(value, CARRIED), f"{function.fn.__name__} names {name}"
            assert not isinstance(value, ModuleType) or value is tl
            if hasattr(value, "fn") and name not in seen:
                seen.add(name)
                waiting.append(value)
