"""RWKV's token shift: every token sees the one before it."""

import torch
from torch import Tensor

from zoo.blocks.window import Window
from zoo.kernels.precision import concatenate
from zoo.kernels.sequence import tail

__all__ = ["lerp_start", "shift"]


def shift(x: Tensor, last: Tensor | None, window: Window) -> tuple[Tensor, Tensor]:
    """Return what stands before each token of `x [B, T, M]`, and the last real token `[B, M]`.

    Before the first token stands `last [B, M]`, or zero where it is None; in a later share of a sequence, what another
    process has there. Before one that is reset stands nothing.
    """
    first = x.new_zeros(x.shape[0], 1, x.shape[2]) if last is None else last[:, None].to(x.dtype)
    if window.group is not None:
        first = torch.where(window.group.rank == 0, first, tail(x, 1, window.group))
    seen = concatenate((first, x), 1)
    before = seen[:, :-1]
    if window.resets is not None:
        before = torch.where(window.resets[..., None], 0, before)
    if window.lengths is None:
        return before, window.at_the_end(seen[:, -1])
    at = window.lengths.long()[:, None, None].expand(-1, 1, x.shape[2])
    return before, window.at_the_end(seen.gather(1, at)[:, 0])


def lerp_start(width: int, exponent: float, device: torch.device) -> Tensor:
    """Shares of the token before at the start, `1 - (i / M)^exponent`: from all in the first channel towards none."""
    return 1 - (torch.arange(width, device=device) / width) ** exponent
