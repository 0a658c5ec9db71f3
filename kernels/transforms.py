"""Where derivatives are taken that an opaque op cannot follow: torch.func's transforms, and forward mode."""

import torch
from torch.autograd import forward_ad

__all__ = ["transformed"]


def transformed() -> bool:
    """Whether `torch.func` (grad, vmap, jvp and what is built on them) or forward-mode AD looks at what is computed.

    An op of torch.library knows reverse mode alone: `torch.func.grad` fails in it, and forward mode gets zeros.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
