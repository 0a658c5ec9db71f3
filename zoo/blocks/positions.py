"""Where tokens stand: positions in the sequence, the start of each token's document, and counting on."""

import torch
from torch import Tensor

__all__ = ["advance", "document_starts", "token_positions"]


def token_positions(position: Tensor | None, tokens: int, device: torch.device) -> Tensor:
    """Return the positions of `tokens` tokens after `position [B]` others, `[B, T]` int64; `[1, T]` after None."""
    steps = torch.arange(tokens, device=device)[None]
    return steps if position is None else position[:, None] + steps


def advance(position: Tensor | None, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the position `[B]` int64 after `x [B, T, ...]`, of whose tokens `lengths [B]` are real (None: all)."""
    count = torch.full(x.shape[:1], x.shape[1], device=x.device) if lengths is None else lengths.long()
    return count if position is None else position + count


def document_starts(positions: Tensor, start: Tensor, resets: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return the position at which the document of each token starts, `[B, T + 1]` int64.

    Column 0 is `start [B]`, what held before the first token, and column `t + 1` belongs to token `t`; so the last one
    holds after them all. Resets in the padding beyond `lengths` count for nothing.

    Args:
        positions: `[B or 1, T]`, none of them before `start`.
        resets: `[B, T]` bool, or None for none.
    """
    if resets is None:
        return start[:, None].expand(-1, positions.shape[1] + 1)
    if lengths is not None:
        resets = resets & (torch.arange(resets.shape[1], device=resets.device) < lengths[:, None])
    return torch.cat((start[:, None], torch.where(resets, positions, 0)), dim=1).cummax(dim=1).values
