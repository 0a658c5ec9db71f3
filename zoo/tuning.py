"""Tune one case of power attention's kernels on the GPU that is here."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from triton.runtime.errors import OutOfResources, PTXASError

from zoo.kernels.power import power_attention
from zoo.kernels.power.supported import supports_hopper
from zoo.kernels.power.triton.configs import BlockSizes, Row, architecture, block_sizes, using
from zoo.kernels.power.triton.tune import Case, tune, write_row

__all__ = ["tune_case"]

_REPEATS = 5
_SUMS = ("state_sums_kernel", "high_sums_kernel")  # of p <= 2, and beyond; else a kernel has its name in the table


def tune_case(
    dtype: torch.dtype, width: int, p: int, tokens: int, heads: int, table: Path, say: Callable[[str], None]
) -> Row:
    """Find block sizes for K = V = width, and write them to a table."""
    inputs = _inputs(dtype, width, tokens, heads)
    hopper = supports_hopper(inputs[0], width, width, p)
    case = Case(str(dtype).removeprefix("torch."), width, width, p, "hopper" if hopper else "triton")
    start = block_sizes(inputs[0], width, width, p, hopper=hopper)

    def measure(sizes: BlockSizes, kernel: str, length: int) -> float:
        return _measure(inputs, p, sizes, kernel, length)

    found = tune(case, start, tokens, measure, say)
    row = Row(architecture(inputs[0]), case.kernels, case.dtype, width, width, p, found)
    write_row(table, row)
    say(f"written to {table}")
    return row


def _inputs(dtype: torch.dtype, width: int, tokens: int, heads: int) -> list[Tensor]:
    """q, k, v and log gates, with gradients."""
    random = torch.Generator("cuda").manual_seed(0)
    shape = (1, tokens, heads, width)
    tensors = [torch.randn(shape, device="cuda", generator=random).to(dtype) for _ in range(3)]
    gates = torch.full(shape[:3], math.log(0.99), device="cuda")
    return [x.requires_grad_() for x in (*tensors, gates)]


def _measure(inputs: list[Tensor], p: int, sizes: BlockSizes, kernel: str, tokens: int) -> float:
    """Seconds on the GPU, of one kernel or of all; infinity where it does not fit."""
    here = [x[:, :tokens].detach().contiguous().requires_grad_() for x in inputs]

    def run() -> None:
        o = power_attention(*here, p=p).o
        if kernel not in ("sums", "output", "high_outputs"):
            torch.autograd.grad(o, here, torch.ones_like(o))

    try:
        with using(sizes):
            run()
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                for _ in range(_REPEATS):
                    run()
                torch.cuda.synchronize()
    except (OutOfResources, PTXASError, torch.OutOfMemoryError):
        return math.inf
    names = _SUMS if kernel == "sums" else (f"{kernel}_kernel",)
    times = [event.self_device_time_total for event in profiler.key_averages() if kernel == "all" or event.key in names]
    return sum(times) / _REPEATS / 1e6
