"""Tune one case of power attention's kernels on the GPU that is here."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from triton.runtime.errors import OutOfResources, PTXASError

from zoo.kernels.launch import compile_what_fits
from zoo.kernels.power import power_attention
from zoo.kernels.power.call import Inputs, Options
from zoo.kernels.power.supported import supports_hopper
from zoo.kernels.power.triton.configs import BlockSizes, Row, architecture, block_sizes, using
from zoo.kernels.power.triton.op import rehearse
from zoo.kernels.power.triton.tune import Case, trials, tune, tuned_kernels, write_row

__all__ = ["tune_case"]

_REPEATS = 5
_SUMS = ("linear_sums_kernel", "state_sums_kernel", "high_sums_kernel")  # of p = 1, 2 and beyond; others by name
_REFUSALS = (OutOfResources, PTXASError)  # of sizes that the GPU has no room for


def tune_case(
    case: Case, tokens: int, heads: int, kernels: Sequence[str], table: Path, say: Callable[[str], None]
) -> Row:
    """Find block sizes, and write them to a table.

    Args:
        case: dtype, widths (K = V) and power; which kernels of ours take it is found here.
        tokens: a sequence's length.
        heads: of queries, keys and values.
        kernels: those to choose sizes for; none, for all that have any.
        table: the CSV file that gets the row.
        say: takes a line of what was found.
    """
    K, p = case.K, case.p
    inputs = _inputs(getattr(torch, case.dtype), K, tokens, heads)
    hopper = supports_hopper(inputs[0], K, case.V, p)
    case = case._replace(kernels="hopper" if hopper else "triton")
    chosen = [kernel for kernel in tuned_kernels(case) if not kernels or kernel in kernels]
    start = block_sizes(inputs[0], K, case.V, p, hopper=hopper)
    _compile(case, start, chosen, inputs)

    def measure(sizes: BlockSizes, kernel: str, length: int) -> float:
        return _measure(inputs, p, sizes, kernel, length)

    found = tune(case, start, chosen, tokens, measure, say)
    row = Row(architecture(inputs[0]), case.kernels, case.dtype, K, case.V, p, found)
    write_row(table, row)
    say(f"written to {table}")
    return row


def _compile(case: Case, start: BlockSizes, kernels: Sequence[str], inputs: list[Tensor]) -> None:
    """All that will be tried, side by side: one after the other it would take most of the time."""
    q, k, v, log_g = (x.detach() for x in inputs)
    normalize = case.p % 2 == 0
    options = Options(case.p, q.shape[-1] ** -0.5, normalize, save_output=normalize, save_states=True)
    launches = []
    for kernel in kernels:
        for launch in trials(case, start, kernel):
            with using(start.with_launch(kernel, launch)):
                launches += rehearse(Inputs(q, k, v, log_g), options)
    compile_what_fits(launches, q.device, _REFUSALS)


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
    except (*_REFUSALS, torch.OutOfMemoryError):
        return math.inf
    names = _SUMS if kernel == "sums" else (f"{kernel}_kernel",)
    times = [event.self_device_time_total for event in profiler.key_averages() if kernel == "all" or event.key in names]
    return sum(times) / _REPEATS / 1e6
