"""Which precision the matrix products of a run have."""

from contextlib import AbstractContextManager, nullcontext

import torch

from zoo.recipe.training import TrainingConfig

__all__ = ["autocast", "autocast_dtype"]


def autocast_dtype(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    """Return bfloat16, or None for the parameters' own float32.

    `auto` is bfloat16 on a CUDA device that computes in it and None everywhere else. It stays None even on a CPU with
    AMX or AVX512-BF16: a run on a laptop and its repetition on a server are to be the same run.
    """
    if config.autocast == "none" or (config.autocast == "auto" and device.type != "cuda"):
        return None
    if config.autocast == "auto" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    return torch.bfloat16


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Return the context that forward passes run in."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
