"""Which kernels a device runs, and what for: matrix products, the mixing op, everything else."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

import torch
from torch._C._autograd import DeviceType
from torch._inductor import config as inductor
from torch.profiler import ProfilerActivity, profile

__all__ = ["KINDS", "Kernel", "kind_of", "launches", "profile_kernels", "seconds", "share_of_work"]

KINDS = ("matmul", "op", "other")
_WARM_UP = 2

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

    def sources(folder: Traversable) -> list[Traversable]:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        return [file for entry in entries for file in (sources(entry) if entry.is_dir() else [entry])]

    texts = (file.read_text() for file in sources(files("zoo") / "kernels/power/triton") if file.name.endswith(".py"))
    return frozenset(name for text in texts for name in re.findall(r"^def (\w+_kernel)\(", text, re.MULTILINE))
