"""Training on a CPU gives the same bits every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["deterministic_on_cpu"]


@contextmanager
def deterministic_on_cpu(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms on a CPU, and put the former setting back.

    Without it Inductor's threads add an embedding's gradient atomically, in whichever order they come. On a GPU, where
    such algorithms cost time and bitwise repetition is not promised, nothing changes.
    """
    if device.type != "cpu":
        yield
        return
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
