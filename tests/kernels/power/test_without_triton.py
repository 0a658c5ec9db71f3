"""Triton is not there on every machine: without it the op works, eager and compiled, and says so if asked for it."""

import subprocess
import sys

PROGRAM = """
import importlib.util
import sys

sys.modules["triton"] = None  # an import of it fails
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "triton" else find_spec(name, package)

import torch
import zoo

q = torch.randn(1, 300, 2, 16, requires_grad=True)
expected, = torch.autograd.grad(zoo.power_attention(q, q, q).o.sum(), q)
compiled = torch.compile(lambda q: zoo.power_attention(q, q, q).o.sum(), fullgraph=True)
found, = torch.autograd.grad(compiled(q), q)
torch.testing.assert_close(found, expected)
try:
    zoo.power_attention(q, q, q, impl="triton")
except zoo.InputError as error:
    print(error)
"""


def test_the_op_works_without_triton() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "impl: 'triton' needs the package triton, which is not installed"
