"""A good call of RWKV-7's op and bad ones, and what is said of those."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.rwkv7 import init_rwkv7_state

from .problems import TOKENS

Arguments = dict[str, Any]


def arguments(**changes: Any) -> Arguments:
    """A good call: B = 2, T = 3, H = 2, N = 4; with changes."""
    good: Arguments = {name: torch.zeros(2, 3, 2, 4) for name in TOKENS}
    return good | {"state": init_rwkv7_state(2, 2, 4)} | changes


def decays(value: float) -> Tensor:
    return torch.zeros(2, 3, 2, 4).index_fill(1, torch.tensor([1]), value)


CASES: list[tuple[str, Callable[[], Arguments], str]] = [
    ("rank", lambda: arguments(r=torch.zeros(2, 3, 4)), "r: expected [B, T, H, N], was [2, 3, 4]"),
    (
        "no heads",
        lambda: arguments(r=torch.zeros(2, 3, 0, 4)),
        "r: expected [B, T, H, N] with at least one head and one channel, was [2, 3, 0, 4]",
    ),
    *(
        (
            f"shape of {name}",
            lambda name=name: arguments(**{name: torch.zeros(2, 4, 2, 4)}),
            f"{name}: expected [2, 3, 2, 4] as r is, was [2, 4, 2, 4]",
        )
        for name in TOKENS[1:]
    ),
    *(
        (
            f"dtype of {name}",
            lambda name=name: arguments(**{name: torch.zeros(2, 3, 2, 4, dtype=torch.bfloat16)}),
            f"{name}: expected torch.float32 as r is, was torch.bfloat16",
        )
        for name in ("k", "v", "kappa", "a")
    ),
    *(
        (
            f"device of {name}",
            lambda name=name: arguments(**{name: torch.zeros(2, 3, 2, 4, device="meta")}),
            f"{name}: expected on cpu as r is, was on meta",
        )
        for name in TOKENS[1:]
    ),
    (
        "integers",
        lambda: arguments(r=torch.zeros(2, 3, 2, 4, dtype=torch.int64)),
        "r: expected a floating dtype, was torch.int64",
    ),
    (
        "decays' dtype",
        lambda: arguments(log_w=torch.zeros(2, 3, 2, 4, dtype=torch.float16)),
        "log_w: expected torch.float32, was torch.float16",
    ),
    ("growth", lambda: arguments(log_w=decays(0.5)), "log_w: expected log decays of at most 0, found 0.5"),
    ("NaN decays", lambda: arguments(log_w=decays(torch.nan)), "log_w: expected log decays of at most 0, found nan"),
    (
        "state of another batch",
        lambda: arguments(state=init_rwkv7_state(1, 2, 4)),
        "state: expected [2, 2, 4, 4] for batch 2, 2 heads and width 4, was [1, 2, 4, 4]",
    ),
    (
        "state's dtype",
        lambda: arguments(state=init_rwkv7_state(2, 2, 4, dtype=torch.float64)),
        "state: expected torch.float32, was torch.float64",
    ),
    (
        "state's device",
        lambda: arguments(state=init_rwkv7_state(2, 2, 4, device="meta")),
        "state: expected on cpu as r is, was on meta",
    ),
    ("lengths' shape", lambda: arguments(lengths=torch.tensor([3])), "lengths: expected [2] as the batch, was [1]"),
    (
        "lengths' dtype",
        lambda: arguments(lengths=torch.tensor([3.0, 1.0])),
        "lengths: expected whole numbers, was torch.float32",
    ),
    ("long lengths", lambda: arguments(lengths=torch.tensor([4, 1])), "lengths: expected from 0 to T=3, was [4, 1]"),
    (
        "resets' shape",
        lambda: arguments(resets=torch.zeros(2, 4, dtype=torch.bool)),
        "resets: expected [2, 3] as r is, was [2, 4]",
    ),
    ("resets' dtype", lambda: arguments(resets=torch.zeros(2, 3)), "resets: expected torch.bool, was torch.float32"),
    (
        "resets' device",
        lambda: arguments(resets=torch.zeros(2, 3, dtype=torch.bool, device="meta")),
        "resets: expected on cpu as r is, was on meta",
    ),
    ("chunk size", lambda: arguments(chunk_size=0), "chunk_size: expected a whole number from 1 on, was 0"),
    ("chunk size's type", lambda: arguments(chunk_size=2.0), "chunk_size: expected a whole number from 1 on, was 2.0"),
    (
        "implementation",
        lambda: arguments(impl="fast"),
        "impl: expected 'triton', 'chunked', 'recurrent' or None, was 'fast'",
    ),
]


def step_arguments(**changes: Any) -> Arguments:
    good = {name: x[:, 0] if name in TOKENS else x for name, x in arguments().items()}
    return good | changes


STEP_CASES: list[tuple[Callable[[], Arguments], str]] = [
    (lambda: step_arguments(r=torch.zeros(2, 1, 2, 4)), "r: expected [B, H, N], was [2, 1, 2, 4]"),
    (lambda: step_arguments(a=torch.zeros(2, 2, 5)), "a: expected [2, 2, 4] as r is, was [2, 2, 5]"),
    (lambda: step_arguments(log_w=torch.ones(2, 2, 4)), "log_w: expected log decays of at most 0, found 1"),
    (
        lambda: step_arguments(state=init_rwkv7_state(2, 4, 4)),
        "state: expected [2, 2, 4, 4] for batch 2, 2 heads and width 4, was [2, 4, 4, 4]",
    ),
]
