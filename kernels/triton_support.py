"""Whether Triton is there, and which dtypes kernels take."""

import importlib.util
import os
import re

import torch

__all__ = ["DTYPES", "INTERPRETED", "TRITON", "TRITON_REFUSAL", "TRITON_VERSION"]

OLDEST_TRITON = (3, 6)


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
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
