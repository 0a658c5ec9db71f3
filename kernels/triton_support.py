"""Whether Triton is there, for which GPUs, and how an op that launches its kernels is registered."""

import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.errors import InputError

__all__ = ["INTERPRETED", "TRITON", "check_architecture", "check_triton", "supports_triton", "triton_op"]

OLDEST_TRITON = (3, 6)
_ELSEWHERE = "impl='chunked' runs anywhere"


def _triton_version() -> str:
    """The version of Triton that is installed, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return ""
    import triton

    return str(triton.__version__)


def _refusal(version: str) -> str:
    """Why this version of Triton cannot be used, or an empty string."""
    if not version:
        return "needs the package triton, which is not installed"
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TRITON:
        return f"needs Triton {OLDEST_TRITON[0]}.{OLDEST_TRITON[1]} or newer, {version} is installed"
    return ""


TRITON_VERSION = _triton_version()
TRITON_REFUSAL = _refusal(TRITON_VERSION)
TRITON = not TRITON_REFUSAL
# Under Triton's interpreter kernels run as Python, on tensors of the CPU.
INTERPRETED = TRITON and os.environ.get("TRITON_INTERPRET", "0") == "1"
WIDTHS = (16, 32, 64, 128)
POWERS = (1, 2, 3, 4)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def triton_op(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register an op whose body may launch Triton kernels, so that the compiler sees through it to them.

    Where there is nothing to see, without Triton or under its interpreter, the op is opaque.
    """
    if TRITON and not INTERPRETED:
        return torch.library.triton_op(name, mutates_args=())
    return torch.library.custom_op(name, mutates_args=())


def supports_triton(q: Tensor, v: Tensor, dtype: torch.dtype, p: int) -> bool:
    """Whether the Triton kernels take these inputs, as `dtype`.

    Raises:
        InputError: they are on a GPU, and the Triton that is installed is too old for it.
    """
    if q.is_cuda and TRITON_VERSION and TRITON_REFUSAL:
        raise InputError(f"impl: on a GPU power attention {TRITON_REFUSAL}; {_ELSEWHERE}")
    widths = q.shape[-1] in WIDTHS and v.shape[-1] in WIDTHS
    return TRITON and q.is_cuda and dtype in DTYPES and widths and p in POWERS


def check_architecture(name: str) -> None:
    """Say which GPUs the kernels are for, if this is none of them.

    Args:
        name: `sm_90` for an NVIDIA GPU of compute capability 9.0, `gfx942` for an AMD GPU.

    Raises:
        InputError: it is another one.
    """
    nvidia = re.fullmatch(r"sm_(\d+)\d", name)
    if not (int(nvidia[1]) >= 8 if nvidia else name.startswith(("gfx94", "gfx95"))):
        raise InputError(
            "impl: the kernels of power attention are for NVIDIA GPUs from compute capability 8.0 on (sm_80, A100 and "
            f"newer) and AMD's Instinct from gfx942 on, this GPU is {name}; {_ELSEWHERE}"
        )


def check_triton(q: Tensor, v: Tensor, dtype: torch.dtype, p: int) -> None:
    """Say why the Triton kernels do not take these inputs.

    Raises:
        InputError: names the argument, what it was and what it must be.
    """
    if not TRITON:
        raise InputError(f"impl: 'triton' {TRITON_REFUSAL}")
    if not q.is_cuda and not INTERPRETED:
        raise InputError(f"impl: 'triton' needs tensors on a GPU, q was on {q.device}")
    if dtype not in DTYPES:
        raise InputError(f"q: impl='triton' takes bfloat16, float16 or float32, was {dtype}")
    for name, x in (("q", q), ("v", v)):
        if x.shape[-1] not in WIDTHS:
            nearest = min(WIDTHS, key=lambda width: abs(width - x.shape[-1]))
            raise InputError(
                f"{name}: impl='triton' takes widths 16, 32, 64 and 128, was {x.shape[-1]}; the nearest is {nearest}"
            )
    if p not in POWERS:
        raise InputError(f"p: impl='triton' takes 1 to 4, was {p}")
