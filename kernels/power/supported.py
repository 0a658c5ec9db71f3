"""What power attention's Triton kernels take: GPUs, widths, powers, dtypes."""

import re

import torch
from torch import Tensor

from zoo.kernels.errors import InputError
from zoo.kernels.triton_support import DTYPES, INTERPRETED, TRITON, TRITON_REFUSAL, TRITON_VERSION

__all__ = [
    "OFFSET_POWERS",
    "POWERS",
    "TUNED",
    "WIDTHS",
    "check_architecture",
    "check_triton",
    "supports_hopper",
    "supports_triton",
]

WIDTHS = (16, 32, 64, 128)
POWERS = (1, 2, 3, 4)
OFFSET_POWERS = (1, 2)  # with an offset
# Kernels whose sizes are in a table; the last two and other sums are for p >= 3.
TUNED = ("sums", "output", "query_gradient", "key_gradient", "value_gradient", "high_outputs", "high_gradients")
_ELSEWHERE = "impl='chunked' runs anywhere"


def supports_triton(q: Tensor, v: Tensor, dtype: torch.dtype, p: int, *, offset: bool) -> bool:
    """Whether the Triton kernels take these inputs, as `dtype`.

    Raises:
        InputError: they are on a GPU, and the Triton that is installed is too old for it.
    """
    if q.is_cuda and TRITON_VERSION and TRITON_REFUSAL:
        raise InputError(f"impl: on a GPU power attention {TRITON_REFUSAL}; {_ELSEWHERE}")
    widths = q.shape[-1] in WIDTHS and v.shape[-1] in WIDTHS
    return TRITON and q.is_cuda and dtype in DTYPES and widths and p in (OFFSET_POWERS if offset else POWERS)


def supports_hopper(x: Tensor, K: int, V: int, p: int) -> bool:
    """Whether Hopper's own kernels take inputs like x."""
    if INTERPRETED or x.device.type != "cuda" or torch.version.hip is not None:
        return False
    if x.dtype != torch.bfloat16 or p != 2 or K not in (64, 128) or V not in (64, 128):
        return False
    return torch.cuda.get_device_capability(x.device)[0] == 9


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


def check_triton(q: Tensor, v: Tensor, dtype: torch.dtype, p: int, *, offset: bool) -> None:
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
    if offset and p not in OFFSET_POWERS:
        raise InputError(f"p: impl='triton' takes 1 and 2 beside an offset, was {p}; {_ELSEWHERE}")
