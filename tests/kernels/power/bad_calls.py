"""Good and bad calls of power attention, and what is said of the bad ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.power import PowerState, init_power_state

Arguments = dict[str, Any]


def arguments(**changes: Any) -> Arguments:
    """A good call: B = 2, T = 3, heads (4, 2, 2), K = 4, V = 5; with changes."""
    good = {
        "q": torch.zeros(2, 3, 4, 4),
        "k": torch.zeros(2, 3, 2, 4),
        "v": torch.zeros(2, 3, 2, 5),
        "log_g": torch.zeros(2, 3, 2),
        "state": init_power_state(2, 2, 4, 5, 2),
    }
    return good | changes


def packed(ends: Any, **changes: Any) -> Arguments:
    """A good packed call but for `cu_seqlens`: one row of 3 tokens, one state a sequence."""
    good = arguments(state=None, cu_seqlens=torch.as_tensor(ends), **changes)
    return {name: x[:1] if name in ("q", "k", "v", "log_g") else x for name, x in good.items()}


def gates(value: float) -> Tensor:
    return torch.zeros(2, 3, 2).index_fill(1, torch.tensor([1]), value)


CASES: list[tuple[str, Callable[[], Arguments], str]] = [
    ("q rank", lambda: arguments(q=torch.zeros(2, 3, 4)), "q: expected [B, T, H, K], was [2, 3, 4]"),
    ("k rank", lambda: arguments(k=torch.zeros(2, 3, 4)), "k: expected [B, T, H, K], was [2, 3, 4]"),
    ("v rank", lambda: arguments(v=torch.zeros(2, 3, 4)), "v: expected [B, T, H, V], was [2, 3, 4]"),
    (
        "k tokens",
        lambda: arguments(k=torch.zeros(2, 4, 2, 4)),
        "k: expected [2, 3] as in q before the heads, was [2, 4, 2, 4]",
    ),
    (
        "v batch",
        lambda: arguments(v=torch.zeros(1, 3, 2, 5)),
        "v: expected [2, 3] as in q before the heads, was [1, 3, 2, 5]",
    ),
    ("k width", lambda: arguments(k=torch.zeros(2, 3, 2, 6)), "k: expected key width 4 as in q, was 6"),
    (
        "q integers",
        lambda: arguments(q=torch.zeros(2, 3, 4, 4, dtype=torch.int64)),
        "q: expected a floating dtype, was torch.int64",
    ),
    (
        "mixed dtypes",
        lambda: arguments(v=torch.zeros(2, 3, 2, 5, dtype=torch.bfloat16)),
        "v: expected torch.float32 as q is, was torch.bfloat16",
    ),
    (
        "mixed devices",
        lambda: arguments(k=torch.zeros(2, 3, 2, 4, device="meta")),
        "k: expected on cpu as q is, was on meta",
    ),
    ("p zero", lambda: arguments(p=0), "p: expected a whole number from 1 on, was 0"),
    ("p fraction", lambda: arguments(p=2.0), "p: expected a whole number from 1 on, was 2.0"),
    (
        "odd p normalised",
        lambda: arguments(p=3, normalize=True, state=None),
        "normalize: expected False for odd p=3, whose weights can be negative",
    ),
    (
        "no heads",
        lambda: arguments(k=torch.zeros(2, 3, 0, 4)),
        "q, k, v: expected at least one head each, was 4, 0, 2",
    ),
    (
        "k heads",
        lambda: arguments(k=torch.zeros(2, 3, 2, 4), v=torch.zeros(2, 3, 3, 5)),
        "k: expected 2 heads to divide 3 state heads (the more of k and v)",
    ),
    (
        "v heads",
        lambda: arguments(k=torch.zeros(2, 3, 3, 4)),
        "v: expected 2 heads to divide 3 state heads (the more of k and v)",
    ),
    (
        "q heads",
        lambda: arguments(q=torch.zeros(2, 3, 3, 4)),
        "k: expected 2 key/value heads to divide 3 query heads",
    ),
    (
        "few q heads",
        lambda: arguments(q=torch.zeros(2, 3, 2, 4), k=torch.zeros(2, 3, 3, 4), v=torch.zeros(2, 3, 3, 5)),
        "q: expected 2 query heads to divide 3 key/value heads",
    ),
    (
        "endless offset",
        lambda: arguments(offset=torch.inf),
        "offset: expected a finite number or a tensor of one a query head, was inf",
    ),
    (
        "offset in words",
        lambda: arguments(offset="learned"),
        "offset: expected a finite number or a tensor of one a query head, was 'learned'",
    ),
    (
        "offsets' count",
        lambda: arguments(offset=torch.ones(2)),
        "offset: expected [4], one a query head, was [2]",
    ),
    (
        "offsets' dtype",
        lambda: arguments(offset=torch.ones(4, dtype=torch.int64)),
        "offset: expected a floating dtype, was torch.int64",
    ),
    (
        "offsets' device",
        lambda: arguments(offset=torch.ones(4, device="meta")),
        "offset: expected on cpu as q is, was on meta",
    ),
    (
        "offset to nothing",
        lambda: arguments(offset=1.0, scale=0.0),
        "scale: expected other than 0 beside an offset, was 0",
    ),
    (
        "too large a state with an offset",
        lambda: {name: torch.zeros(1, 1, 1, 64) for name in "qkv"} | {"p": 4, "offset": 1.0},
        "p: a state of p=4 with key width K=64, an offset and value width V=64 takes 202 MiB a head, over the limit of "
        "64 MiB; the widest key that fits is K=47, or raise the limit with zoo.state_limit(268435456)",
    ),
    ("gates' shape", lambda: arguments(log_g=torch.zeros(2, 3)), "log_g: expected [2, 3, 2] as in v, was [2, 3]"),
    (
        "gates' dtype",
        lambda: arguments(log_g=torch.zeros(2, 3, 2, dtype=torch.float16)),
        "log_g: expected torch.float32, was torch.float16",
    ),
    (
        "gates' device",
        lambda: arguments(log_g=torch.zeros(2, 3, 2, device="meta")),
        "log_g: expected on cpu as q is, was on meta",
    ),
    ("positive gates", lambda: arguments(log_g=gates(0.5)), "log_g: expected log gates of at most 0, found 0.5"),
    ("NaN gates", lambda: arguments(log_g=gates(torch.nan)), "log_g: expected log gates of at most 0, found nan"),
    (
        "state of another batch",
        lambda: arguments(state=init_power_state(1, 2, 4, 5, 2)),
        "state.S: expected [2, 2, 10, 5] for batch 2, 2 heads, p=2, K=4 (D=10) and V=5, was [1, 2, 10, 5]: "
        "a state of another batch, p or width",
    ),
    (
        "state of another p",
        lambda: arguments(state=init_power_state(2, 2, 4, 5, 3)),
        "state.S: expected [2, 2, 10, 5] for batch 2, 2 heads, p=2, K=4 (D=10) and V=5, was [2, 2, 20, 5]: "
        "a state of another batch, p or width",
    ),
    (
        "normaliser of another width",
        lambda: arguments(state=PowerState(torch.zeros(2, 2, 10, 5), torch.zeros(2, 2, 9))),
        "state.z: expected [2, 2, 10] for batch 2, 2 heads, p=2, K=4 (D=10) and V=5, was [2, 2, 9]: "
        "a state of another batch, p or width",
    ),
    (
        "state's dtype",
        lambda: arguments(state=init_power_state(2, 2, 4, 5, 2, dtype=torch.float64)),
        "state.S: expected torch.float32, was torch.float64",
    ),
    (
        "state's device",
        lambda: arguments(state=init_power_state(2, 2, 4, 5, 2, device="meta")),
        "state.S: expected on cpu as q is, was on meta",
    ),
    (
        "too large a state",
        lambda: {name: torch.zeros(1, 1, 1, 64) for name in "qkv"} | {"p": 4},
        "p: a state of p=4 with key width K=64 and value width V=64 takes 190 MiB a head, over the limit of 64 MiB; "
        "the widest key that fits is K=48, or raise the limit with zoo.state_limit(268435456)",
    ),
    (
        "packed batch",
        lambda: arguments(cu_seqlens=torch.tensor([0, 3]), state=None),
        "cu_seqlens: expected sequences packed into batch 1, q has batch 2",
    ),
    ("no sequences", lambda: packed([0]), "cu_seqlens: expected [sequences + 1], at least one sequence, was [1]"),
    (
        "packing's rank",
        lambda: packed([[0, 3]]),
        "cu_seqlens: expected [sequences + 1], at least one sequence, was [1, 2]",
    ),
    ("packing's dtype", lambda: packed([0.0, 3.0]), "cu_seqlens: expected torch.int32, was torch.float32"),
    (
        "packing's start",
        lambda: packed([1, 3]),
        "cu_seqlens: expected to start at 0 and never to decrease, was [1, 3]",
    ),
    (
        "decreasing packing",
        lambda: packed([0, 2, 1, 3]),
        "cu_seqlens: expected to start at 0 and never to decrease, was [0, 2, 1, 3]",
    ),
    ("packing's end", lambda: packed([0, 2]), "cu_seqlens: expected to end at T=3, ends at 2"),
    (
        "packed state's rows",
        lambda: packed([0, 1, 3]) | {"state": init_power_state(1, 2, 4, 5, 2)},
        "state.S: expected [2, 2, 10, 5] for batch 2, 2 heads, p=2, K=4 (D=10) and V=5, was [1, 2, 10, 5]: "
        "a state of another batch, p or width",
    ),
    ("lengths' shape", lambda: arguments(lengths=torch.tensor([3])), "lengths: expected [2] as the batch, was [1]"),
    (
        "lengths' dtype",
        lambda: arguments(lengths=torch.tensor([3.0, 1.0])),
        "lengths: expected whole numbers, was torch.float32",
    ),
    ("long lengths", lambda: arguments(lengths=torch.tensor([4, 1])), "lengths: expected from 0 to T=3, was [4, 1]"),
    (
        "negative lengths",
        lambda: arguments(lengths=torch.tensor([3, -1])),
        "lengths: expected from 0 to T=3, was [3, -1]",
    ),
    (
        "lengths beside packing",
        lambda: packed([0, 3], lengths=torch.tensor([3])),
        "lengths: expected None beside cu_seqlens, which has the lengths already",
    ),
    ("chunk size", lambda: arguments(chunk_size=0), "chunk_size: expected at least 1, was 0"),
    (
        "implementation",
        lambda: arguments(impl="fast"),
        "impl: expected 'triton', 'chunked', 'quadratic', 'recurrent' or None, was 'fast'",
    ),
    (
        "Triton without a GPU",
        lambda: arguments(impl="triton"),
        "impl: 'triton' needs tensors on a GPU, q was on cpu",
    ),
]


def step_arguments(**changes: Any) -> Arguments:
    good = arguments(**changes)
    return {
        name: x[:, 0] if name in ("q", "k", "v", "log_g") and name not in changes else x for name, x in good.items()
    }


STEP_CASES: list[tuple[Callable[[], Arguments], str]] = [
    (lambda: step_arguments(q=torch.zeros(2, 1, 4, 4)), "q: expected [B, H, K], was [2, 1, 4, 4]"),
    (lambda: step_arguments(v=torch.zeros(1, 2, 5)), "v: expected [2] as in q before the heads, was [1, 2, 5]"),
    (lambda: step_arguments(log_g=torch.zeros(2, 1)), "log_g: expected [2, 2] as in v, was [2, 1]"),
    (lambda: step_arguments(log_g=torch.ones(2, 2)), "log_g: expected log gates of at most 0, found 1"),
    (
        lambda: step_arguments(p=3, normalize=True),
        "normalize: expected False for odd p=3, whose weights can be negative",
    ),
    (
        lambda: step_arguments(state=init_power_state(2, 4, 4, 5, 2)),
        "state.S: expected [2, 2, 10, 5] for batch 2, 2 heads, p=2, K=4 (D=10) and V=5, was [2, 4, 10, 5]: "
        "a state of another batch, p or width",
    ),
]
