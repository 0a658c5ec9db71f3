"""Memory layouts of inputs `[B, T, H, X]`, for every op's problems."""

import torch
from torch import Tensor


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same shape in another memory layout; `expanded` also repeats the first token everywhere."""
    match layout:
        case "heads first":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        case "strided":
            return torch.stack((x, torch.full_like(x, torch.nan)), dim=-1).flatten(-2)[..., ::2]
        case "reversed widths":
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        case "expanded":
            return x[:, :1].expand(x.shape) if x.shape[1] else x
        case _:
            return x
