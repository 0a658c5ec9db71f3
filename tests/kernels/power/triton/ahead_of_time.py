"""Build the kernels that a call launches, for any GPU and without one."""

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
import yaml
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.experimental.gluon._runtime import GluonASTSource

from zoo.kernels.launch import Launch as Rehearsed
from zoo.kernels.power import Heads, init_power_state
from zoo.kernels.power.call import Fold, Incoming, Inputs, JournalStep, Options, Step
from zoo.kernels.power.journal import open_journal
from zoo.kernels.power.triton import journal as journal_module
from zoo.kernels.power.triton import passes, plan, portable, prepare, states
from zoo.kernels.power.triton import step as step_module
from zoo.kernels.power.triton.high import passes as high
from zoo.kernels.power.triton.hopper import attend, differentiate, gradients, outputs, sums

HOPPER = GPUTarget("cuda", 90, 32)
HOPPER_SHARED = 227 * 1024  # bytes of shared memory that a program may have
# Registers and spilled bytes by case and kernel, on sm_90.
_BUDGET = yaml.safe_load(Path(__file__).with_name("budget.yaml").read_text())
_POINTERS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1",
}  # fmt: skip
_OPTIONS = ("num_warps", "num_stages", "launch_pdl")
JOURNAL_KERNELS = ("fold_kernel", "read_kernel", "settle_kernel")


class Launch(NamedTuple):
    """One launch: the kernel, its arguments by name, and options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


class Usage(NamedTuple):
    """Resources of a built kernel on an NVIDIA GPU: registers a thread, spilled bytes, bytes of shared memory."""

    registers: int
    stack: int
    shared: int


def rehearsed(each: Rehearsed) -> Launch:
    """A launch as a rehearsal recorded it."""
    values = (*each.tensors, *each.numbers, *each.constants.values())
    return Launch(each.kernel, dict(zip(each.kernel.arg_names, values, strict=True)), each.options)


def launches(
    K: int,
    V: int,
    p: int,
    dtype: torch.dtype,
    *,
    T: int,
    heads: tuple[int, int, int] = (2, 2, 2),
    gated: bool = True,
    hopper: bool = False,
    return_state: bool = False,
    offset: bool = False,
) -> dict[str, Launch]:
    """The kernels of one forward and backward pass, and of one decode step, by name: the last launch of each.

    hopper: as on a GPU that has kernels of its own.
    return_state: of a forward pass alone that returns its state.
    offset: with offsets to scores.
    """
    found: dict[str, Launch] = {}

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel, self.arg_names, self.__name__ = kernel, kernel.arg_names, kernel.__name__

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def record(*values: Any, **named: Any) -> None:
                options = {name: named.pop(name) for name in _OPTIONS if name in named}
                arguments = dict(zip(self.kernel.arg_names, values, strict=False)) | named
                found[self.kernel.__name__] = Launch(self.kernel, arguments, options)

            return record

    normalize = p % 2 == 0
    q, k, v, do = (
        torch.zeros(1, T, h, width, dtype=dtype)
        for h, width in zip((*heads, max(heads)), (K, K, V, V), strict=True)
    )  # fmt: skip
    log_g = torch.zeros(1, T, heads[2]) if gated else None
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module in (high, passes, portable, prepare, states):
            monkeypatch.setattr(module, "launcher", Recorder)
        if hopper:
            monkeypatch.setattr(plan, "supports_hopper", lambda *_: True)
            for module in (attend, differentiate, gradients, outputs, sums):
                name = f"{module.__name__.rpartition('.')[2]}_kernel"
                monkeypatch.setattr(module, name, Recorder(getattr(module, name)))
        for module, names in ((step_module, ("step_kernel", "finish_kernel")), (journal_module, JOURNAL_KERNELS)):
            for name in names:
                monkeypatch.setattr(module, name, Recorder(getattr(module, name)))
        offsets = torch.ones(heads[0]) if offset else None
        inputs = Inputs(q, k, v, log_g, offset=offsets)
        options = Options(p, 1.0, normalize, return_state=return_state, save_output=normalize and not return_state)
        results = passes.forward(inputs, options._replace(save_states=True))
        if not return_state:
            passes.backward(Incoming(do, None, None), inputs, results.saved(options), options)
        token = [None if x is None else x[:, 0] for x in (q, k, v, log_g)]
        state = init_power_state(1, max(heads[1:]), K, V, p, offset=offset)
        step_module.triton_step(Step(*token, *state, offsets, p=p, scale=1.0, normalize=normalize))
        state = open_journal(state, Heads(*heads), K, 2051, dtype)
        options = {"p": p, "scale": 1.0, "normalize": normalize, "fold": 64, "keep": 0}
        journal_module.triton_journal_step(JournalStep(*token, *state, state.folded, offsets, **options))
        journal_module.triton_fold(Fold(*state, state.folded, p))
    return found


def build(launch: Launch, target: GPUTarget) -> CompiledKernel:
    """Compile as the runtime would: sizes of 1 are constants, and what 16 divides is known to be."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (type(value) is int and value == 1 and not parameter.do_not_specialize):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    kind = GluonASTSource if launch.kernel.is_gluon() else ASTSource
    source = kind(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=launch.options)


def usage(kernel: CompiledKernel) -> Usage:
    """Read what the assembler says of an NVIDIA kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert match is not None, report
    return Usage(int(match[1]), int(match[2]), kernel.metadata.shared)


def complaints(kernel: CompiledKernel) -> str:
    """The assembler's warnings about an NVIDIA kernel's speed."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.NamedTemporaryFile(suffix=".ptx") as file:
        file.write(kernel.asm["ptx"].encode())
        file.flush()
        command = [tool, "-v", "--gpu-name", "sm_90a", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return "\n".join(line for line in report.splitlines() if "Performance Loss" in line)


def check_budget(case: str, launches: dict[str, Launch]) -> None:
    """Assert that kernels take no more of a Hopper GPU than they are allowed to."""
    for name, launch in launches.items():
        found, allowed = usage(build(launch, HOPPER)), _BUDGET[case][name]
        assert found.registers <= allowed["registers"], (name, found)
        assert found.stack <= allowed["spilled"], (name, found)
        assert found.shared <= HOPPER_SHARED, (name, found)
