"""Which kernels a device runs, and what for: matrix products, the mixing op, everything else."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from rich.console import Console
from torch._C._autograd import DeviceType
from torch._inductor import config as inductor
from torch.profiler import ProfilerActivity, profile

from zoo.bench.models import TrainingStep
from zoo.report.numbers import milliseconds
from zoo.report.tables import plain_table

__all__ = [
    "KINDS", "Kernel", "ModelProfile", "kind_of", "launches", "print_profile", "profile_kernels", "profile_step",
    "seconds", "share_of_work",
]  # fmt: skip

KINDS = ("matmul", "op", "other")
_WARM_UP = 2
_LISTED = 16  # kernels
_NAME = 44  # characters of a kernel's name

# Attention first: its kernels can have `cutlass` in their names too.
_ATTENTION = re.compile(r"flash|fmha|sdpa|attention|mem_eff|rwkv7", re.IGNORECASE)
_MATMUL = re.compile(
    r"gemm|gemv|nvjet|cutlass|cublas|xmma|splitk|triton_tem|mkldnn::_linear|^(aten::)?(mm|bmm|addmm|linear)(_out)?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel in one run; on a CPU, all calls of one op."""

    name: str
    launches: float
    seconds: float

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return kind_of(self.name)


def kind_of(name: str) -> str:
    """Return what a kernel is for, by its name: `matmul`, `op` (what mixes over time) or `other`."""
    # The compiler numbers the kernels that it finds in ops.
    if re.sub(r"_\d+$", "", name) in _own_kernels() or _ATTENTION.search(name):
        return "op"
    return "matmul" if _MATMUL.search(name) else "other"


def profile_kernels(run: Callable[[], object], device: torch.device, *, repeats: int = 3) -> list[Kernel]:
    """Return the kernels of one run, the longest in all first.

    Args:
        run: is called a few times before, and `repeats` times under the profiler.
        device: whose kernels; of a CPU, ops stand for them.
        repeats: runs that launches and times are means of.
    """
    gpu = device.type == "cuda"
    # Otherwise the kernels that the compiler writes for a CPU go by no name.
    with inductor.patch({"cpp.enable_kernel_profile": not gpu}):
        for _ in range(_WARM_UP):
            run()
        if gpu:
            torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
            for _ in range(repeats):
                run()
            if gpu:
                torch.cuda.synchronize()
    wanted = DeviceType.CUDA if gpu else DeviceType.CPU
    times: dict[str, list[float]] = defaultdict(list)  # microseconds
    for event in profiler.events() or ():
        time = event.self_device_time_total if gpu else event.self_cpu_time_total
        if event.device_type == wanted and not event.is_user_annotation and time > 0:
            times[event.name].append(time)
    found = [Kernel(name, len(all_) / repeats, sum(all_) / repeats / 1e6) for name, all_ in times.items()]
    return sorted(found, key=lambda kernel: -kernel.seconds)


def launches(kernels: Sequence[Kernel], kind: str | None = None) -> float:
    """Return how many launches there are, of one kind or of all."""
    return sum(kernel.launches for kernel in kernels if kind in (None, kernel.kind))


def seconds(kernels: Sequence[Kernel], kind: str | None = None) -> float:
    """Return the time in kernels, of one kind or of all."""
    return sum(kernel.seconds for kernel in kernels if kind in (None, kernel.kind))


def share_of_work(kernels: Sequence[Kernel]) -> float:
    """Return the share of time that is spent in matrix products and the mixing op."""
    return 1 - seconds(kernels, "other") / max(seconds(kernels), 1e-12)


@cache
def _own_kernels() -> frozenset[str]:
    """The names of all functions that Triton or Gluon compiles for power attention, read from their sources."""
    folder = Path(str(files("zoo") / "kernels/power/triton"))
    texts = (file.read_text() for file in folder.rglob("*.py"))
    return frozenset(name for text in texts for name in re.findall(r"^def (\w+_kernel)\(", text, re.MULTILINE))


@dataclass(frozen=True)
class ModelProfile:
    """The kernels of one training step, and of its forward pass."""

    forward: list[Kernel]
    step: list[Kernel]
    launches_per_layer: float | None  # forward; None where the model has too few layers to tell


def profile_step(step: TrainingStep, *, compiled: bool) -> ModelProfile:
    """Profile a step; a layer launches what the model does beyond one of fewer layers, over the layers it has more."""
    recipe, device = step.recipe, step.device
    forward, whole = profile_kernels(step.forward, device), profile_kernels(step, device)
    few = len(recipe.repeated_mixers)
    more = (recipe.model.layers - 1) // few * few
    if more < few:
        return ModelProfile(forward, whole, None)
    short = recipe.override([f"model.layers={recipe.model.layers - more}"])
    fewer = TrainingStep(short, step.batches, device, compiled=compiled, optimize=False)
    return ModelProfile(forward, whole, (launches(forward) - launches(profile_kernels(fewer.forward, device))) / more)


def print_profile(profile: ModelProfile, title: str, console: Console) -> None:
    """Print launches, shares of time, and the kernels that take most of it."""
    console.print(f"\n{title}", style="bold", highlight=False)
    table = plain_table("", "forward\nlaunches", "\nms", "\nshare", "step\nlaunches", "\nms", "\nshare")
    for kind in (*KINDS, None):
        cells = [cell for kernels in (profile.forward, profile.step) for cell in _cells(kernels, kind)]
        table.add_row(kind or "all", *cells)
    console.print(table)
    share = f"matmuls and op: {share_of_work(profile.forward):.1%} of the forward pass, "
    console.print(f"{share}{share_of_work(profile.step):.1%} of the step", highlight=False)
    if profile.launches_per_layer is not None:
        console.print(f"kernel launches a layer, forward: {profile.launches_per_layer:.1f}", highlight=False)
    kernels = plain_table("kernel of the step", "kind", "launches", "ms")
    for kernel in profile.step[:_LISTED]:
        name = kernel.name if len(kernel.name) <= _NAME else f"{kernel.name[: _NAME - 1]}…"
        kernels.add_row(name, kernel.kind, f"{kernel.launches:.0f}", milliseconds(kernel.seconds))
    console.print(kernels, markup=False)


def _cells(kernels: list[Kernel], kind: str | None) -> list[str]:
    time = seconds(kernels, kind)
    share = time / max(seconds(kernels), 1e-12)
    return [f"{launches(kernels, kind):,.0f}", milliseconds(time), f"{share:.1%}"]
