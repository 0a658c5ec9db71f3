"""RWKV's token shift: every token sees the one before it."""

import torch
from torch import Tensor

__all__ = ["lerp_start", "shift"]


def shift(
    x: Tensor, last: Tensor | None, *, lengths: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what stands before each token of `x [B, T, M]`, and the last real token `[B, M]`.

    Before the first token stands `last [B, M]`, or zero.

    Args:
        lengths: `[B]` integers: tokens of each row that are real.
        resets: `[B, T]` bool: nothing stands before a token marked True.
    """
    first = x.new_zeros(x.shape[0], 1, x.shape[2]) if last is None else last[:, None].to(x.dtype)
    seen = torch.cat((first, x), 1)
    before = seen[:, :-1]
    if resets is not None:
        before = torch.where(resets[..., None], 0, before)
    if lengths is None:
        return before, seen[:, -1]
    at = lengths.long()[:, None, None].expand(-1, 1, x.shape[2])
    return before, seen.gather(1, at)[:, 0]


def lerp_start(width: int, exponent: float, device: torch.device) -> Tensor:
    """Shares of the token before at the start, `1 - (i / M)^exponent`: from all in the first channel towards none."""
    return 1 - (torch.arange(width, device=device) / width) ** exponent
