"""An offset to scores, `(offset + scale q . k)^p`: one more channel, which every key has alike."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["key_channels", "query_channels"]


def query_channels(q: Tensor, offset: Tensor | None) -> Tensor:
    """Queries `[..., Hq, K]`, and as their last channel the offset of each head `[Hq]`, if there is one."""
    return q if offset is None else torch.cat((q, offset.to(q.dtype).expand(q.shape[:-1])[..., None]), -1)


def key_channels(k: Tensor, offset: Tensor | None) -> Tensor:
    """Keys `[..., Hk, K]`, and as their last channel ones where there is an offset."""
    return k if offset is None else F.pad(k, (0, 1), value=1.0)
