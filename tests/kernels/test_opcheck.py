"""`torch.library.opcheck` of every op, with what the public functions pass to it: schema, fake tensors, autograd."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.kernels.cache_attention import cache_attention
from zoo.kernels.causal_convolution import causal_convolution
from zoo.kernels.linear_cross_entropy import linear_cross_entropy
from zoo.kernels.power import (
    Heads,
    PowerState,
    init_power_state,
    open_journal,
    power_attention,
    power_attention_step,
    power_journal_attention,
    power_journal_step,
)
from zoo.kernels.rwkv7 import rwkv7, rwkv7_step
from zoo.kernels.token_scores import linear_scores

from .marks import KERNEL_DEVICE, interpreted_or_on_gpu, not_interpreted
from .rwkv7.problems import TOKENS, random_problem


class Calls(TorchDispatchMode):
    """Records the calls of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, Sequence[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "zoo":
            self.found.append((func, args))
        return func(*args, **(kwargs or {}))


def attend(
    heads: tuple[int, int, int], p: int, *, B: int = 2, T: int = 5, dtype: torch.dtype = torch.float32,
    gated: bool = True, state_rows: int = 0, **options: Any,
) -> list[Tensor]:  # fmt: skip
    """Power attention's results, whose inputs are differentiable; K = 4, V = 3."""
    q, k, v = (
        torch.randn(B, T, n, width).to(dtype).requires_grad_() for n, width in zip(heads, (4, 4, 3), strict=True)
    )
    log_g = (-torch.rand(B, T, heads[2])).requires_grad_() if gated else None
    state = init_power_state(state_rows, max(heads[1:]), 4, 3, p) if state_rows else None
    if state is not None:
        state = PowerState(*((x + 1).requires_grad_() for x in state))
    o, after = power_attention(q, k, v, log_g, p=p, scale=0.5, state=state, **options)
    return [o] if after is None else [o, *after]


def attend_step(gated: bool, offset: float = 0.0) -> list[Tensor]:
    q, k, v = torch.randn(2, 4, 4), torch.randn(2, 2, 4), torch.randn(2, 2, 3)
    state = PowerState(*(x + 1 for x in init_power_state(2, 2, 4, 3, 2, offset=offset != 0)))
    log_g = -torch.rand(2, 2) if gated else None
    return [power_attention_step(q, k, v, log_g, state=state, scale=0.5, offset=offset)]


def attend_beside_journal() -> list[Tensor]:
    """The step that fills a journal of three tokens, so that two of them are folded."""
    q, k, v = torch.randn(2, 4, 4), torch.randn(2, 2, 4), torch.randn(2, 2, 3)
    state = open_journal(init_power_state(2, 2, 4, 3, 2), Heads(4, 2, 2), 4, 4, torch.float32)
    at = torch.full((2,), 2)
    return [power_journal_step(q, k, v, -torch.rand(2, 2), state=state, position=at, scale=0.5, fold=2)]


def attend_on_beside_journal(keep: int, lengths: list[int] | None) -> list[Tensor]:
    """Two tokens behind three, of which some enter the sums: as what may be taken back, or as a longer piece is."""
    q, k, v = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 2, 4), torch.randn(2, 2, 2, 3)
    state = open_journal(init_power_state(2, 2, 4, 3, 2), Heads(4, 2, 2), 4, 5 + keep, torch.float32)
    options = {"position": torch.full((2,), 3), "fold": 2, "keep": keep, "scale": 0.5}
    options["lengths"] = None if lengths is None else torch.tensor(lengths)
    with torch.no_grad():
        o, after = power_journal_attention(q, k, v, -torch.rand(2, 2, 2), state=state, **options)
    return [o, *after]


def mix(T: int = 5, *, dtype: torch.dtype = torch.float32, with_state: bool) -> list[Tensor]:
    tokens = [getattr(random_problem(2, T, 2, 4, dtype=dtype), name).requires_grad_() for name in TOKENS]
    state = torch.ones(2, 2, 4, 4, requires_grad=True) if with_state else None
    return [x for x in rwkv7(*tokens, state=state, return_state=with_state, chunk_size=2) if x is not None]


def mix_step() -> list[Tensor]:
    problem = random_problem(2, 5, 2, 4)
    return [rwkv7_step(*(getattr(problem, name)[:, 0] for name in TOKENS), state=torch.ones(2, 2, 4, 4))]


def cross_entropy(gradient: bool) -> list[Tensor]:
    x, weight = torch.randn(7, 4, requires_grad=gradient), torch.randn(5, 4, requires_grad=gradient)
    return [linear_cross_entropy(x, weight, torch.randint(0, 5, (7,)))]


def score_tokens() -> list[Tensor]:
    return list(linear_scores(torch.randn(7, 4), torch.randn(5, 4), torch.randint(0, 5, (7,))))


def attend_to_cache() -> list[Tensor]:
    q, (keys, values) = torch.randn(2, 4, 16), torch.randn(2, 2, 40, 2, 16)
    position, start = torch.tensor([[40, 9], [0, 3]])
    return [cache_attention(*(x.to(KERNEL_DEVICE) for x in (q, keys, values, position, start)))]


def convolve(*, whole: bool) -> list[Tensor]:
    shapes = (2, 9, 5), (5, 4), (5,), (2, 3, 5)
    x, weight, bias, tail = (torch.randn(shape, device=KERNEL_DEVICE, requires_grad=True) for shape in shapes)
    resets = torch.rand(2, 9, device=KERNEL_DEVICE) < 0.2
    return [causal_convolution(x, weight, bias, tail=tail, resets=resets) if whole else causal_convolution(x, weight)]


SHARED_KEYS, GROUPED_QUERIES = (2, 1, 2), (4, 2, 2)
CONVOLUTION = {"causal_convolution", "causal_convolution_backward"}
POWER, RWKV7 = {"power_attention", "power_attention_backward"}, {"rwkv7", "rwkv7_backward"}
# The public function's call, and the ops that it must reach.
CALLS: dict[str, tuple[Callable[[], list[Tensor]], set[str]]] = {
    "power": (lambda: attend(SHARED_KEYS, 2, gated=False, chunk_size=2), POWER),
    "power, gates and states": (
        lambda: attend(GROUPED_QUERIES, 3, state_rows=2, chunk_size=2, return_state=True),
        POWER,
    ),
    "power, packed": (
        lambda: attend(
            GROUPED_QUERIES, 2, B=1, state_rows=3, chunk_size=2, return_state=True,
            cu_seqlens=torch.tensor([0, 2, 2, 5], dtype=torch.int32),
        ),
        POWER,
    ),
    "power, bfloat16": (lambda: attend(SHARED_KEYS, 1, dtype=torch.bfloat16, return_state=True), POWER),
    "power, bfloat16, normalised": (lambda: attend(SHARED_KEYS, 2, dtype=torch.bfloat16, return_state=True), POWER),
    "power, offsets": (
        lambda: attend(GROUPED_QUERIES, 2, chunk_size=2, return_state=True, offset=torch.ones(4, requires_grad=True)),
        POWER,
    ),
    "power, packed, offsets": (
        lambda: attend(
            GROUPED_QUERIES, 2, B=1, chunk_size=2, offset=1.0, cu_seqlens=torch.tensor([0, 2, 5], dtype=torch.int32)
        ),
        POWER,
    ),
    "power, no tokens": (lambda: attend(SHARED_KEYS, 2, T=0, state_rows=2, return_state=True), POWER),
    "power step": (lambda: attend_step(gated=False), {"power_attention_step"}),
    "power step, gates": (lambda: attend_step(gated=True), {"power_attention_step"}),
    "power step, offset": (lambda: attend_step(gated=True, offset=0.5), {"power_attention_step"}),
    "power step, journal": (attend_beside_journal, {"power_attention_journal_step"}),
    "power, journal, block": (
        partial(attend_on_beside_journal, 1, None), {"power_attention_journal_block", "power_attention_journal_fold"}
    ),
    "power, journal, piece": (
        partial(attend_on_beside_journal, 0, [2, 1]), {"power_attention_journal_fold", "power_attention"}
    ),
    "rwkv7": (lambda: mix(with_state=False), RWKV7),
    "rwkv7, states": (lambda: mix(with_state=True), RWKV7),
    "rwkv7, bfloat16": (lambda: mix(dtype=torch.bfloat16, with_state=False), RWKV7),
    "rwkv7, bfloat16, states": (lambda: mix(dtype=torch.bfloat16, with_state=True), RWKV7),
    "rwkv7, no tokens": (lambda: mix(0, with_state=False), RWKV7),
    "rwkv7, no tokens, states": (lambda: mix(0, with_state=True), RWKV7),
    "rwkv7 step": (mix_step, {"rwkv7_step"}),
    "cross entropy": (lambda: cross_entropy(gradient=True), {"linear_cross_entropy"}),
    "cross entropy, no gradient": (lambda: cross_entropy(gradient=False), {"linear_cross_entropy"}),
    "token scores": (score_tokens, {"token_scores"}),
    "cache": (attend_to_cache, {"cache_attention"}),
    "convolution": (partial(convolve, whole=False), CONVOLUTION),
    "convolution, tail, resets": (partial(convolve, whole=True), CONVOLUTION),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=interpreted_or_on_gpu if name.startswith(("cache", "convolution")) else not_interpreted
        )
        for name in CALLS
    ],
)
def test_opcheck(name: str) -> None:
    call, ops = CALLS[name]
    with Calls() as calls:
        results = [x for x in call() if x.requires_grad]
        if results:
            torch.autograd.backward(results, [torch.ones_like(x) for x in results])
    assert ops <= {op.name().removeprefix("zoo::") for op, _ in calls.found}
    for op, arguments in calls.found:
        if "backward" in op.name():  # which has no gradient itself
            arguments = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
        torch.library.opcheck(op, tuple(arguments))
