"""What compiled code depends on: versions and machine, in words, so that a difference can be told by name."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.compiler.config

from zoo.kernels.cache_key import key_compiled_code_by_sources
from zoo.reading import hash_of
from zoo.version import __version__

__all__ = ["Kind", "kind_of", "processor"]

Kind = dict[str, str]


def kind_of(device_type: str) -> Kind:
    """Return what has to be the same for code of such a device, `cpu` or `cuda`, to be found and to run."""
    key_compiled_code_by_sources()
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return {
        "zoo": __version__,
        "torch": torch.__version__,
        "triton": triton,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "system": " ".join((platform.system(), platform.machine(), *platform.libc_ver())),
        "key of the ops' sources": str(torch.compiler.config.cache_key_tag),
        "device": _gpu() if device_type == "cuda" else device_type,
    }


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    major, minor = torch.cuda.get_device_capability()
    toolkit = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return f"{torch.cuda.get_device_name()} ({major}.{minor}, {toolkit})"


def processor() -> Kind:
    """Return what else has to be the same for libraries of C++, which use every instruction that this processor has.

    They are found by the command that compiles them, in which folders of the Python environment stand.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.processor() or platform.machine())
    instructions = " ".join(sorted(facts.get("flags", facts.get("Features", "")).split()))
    return {"processor": f"{name}, instructions {hash_of(instructions.encode())[:8]}", "environment": sys.prefix}
