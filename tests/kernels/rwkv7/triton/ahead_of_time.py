"""Build the kernels that a call launches, for any GPU and without one."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels import launch
from zoo.kernels.rwkv7.call import Incoming, Options, Saved, Tokens
from zoo.kernels.rwkv7.triton import passes

from ...power.triton.ahead_of_time import Launch, rehearsed

__all__ = ["launches"]


def launches(N: int, *, base: int = 128, dtype: torch.dtype = torch.bfloat16) -> dict[str, Launch]:
    """The kernels of both passes of a long sequence by name; those that also run backwards in time stand twice."""
    found: dict[str, Launch] = {}
    with FakeTensorMode(), launch.rehearsal() as recorded:
        r, k, v, kappa, a = (torch.empty(1, 65536, 12, N, dtype=dtype) for _ in range(5))
        tokens, options = Tokens(r, torch.empty(1, 65536, 12, N), k, v, kappa, a), Options(True, 0, base)
        o, _, *kept = passes.forward(tokens, None, options)
        passes.backward(Incoming(o, None), tokens, Saved(None, *kept), options)
    for each in recorded:
        name = each.kernel.__name__ + (", reverse" if each.constants.get("REVERSE") else "")
        found[name] = rehearsed(each)
    return found
