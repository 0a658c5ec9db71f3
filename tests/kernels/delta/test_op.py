"""What `torch.library` is told about the ops: schema, fakes, autograd, autocast, FLOPs; and memory linear in T."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from zoo.kernels.delta import chunked, delta_attention, delta_attention_step, delta_flops, init_delta_state
from zoo.kernels.delta.call import Incoming, Inputs, Options
from zoo.kernels.delta.flops import backward_flops, step_flops

from .problems import IMPLEMENTATIONS, TOKENS, Problem, problems, random_problem, run


def inputs(T: int = 5, *, gradients: bool = True, **options: Any) -> list[Tensor | None]:
    """q, k, v, log gates and rates of two rows, with one query and key head for two value heads."""
    problem = random_problem(T, **{"shape": (2, 2, 4, 3), **options})
    tokens = [getattr(problem, name) for name in TOKENS]
    tokens[:2] = (x[:, :, :1].contiguous() for x in tokens[:2])
    return [None if x is None else x.detach().requires_grad_(gradients) for x in tokens]


CASES: dict[str, dict[str, Any]] = {
    "gated": {},
    "a gate a channel": {"channels": True},
    "no gates": {"gates": "none"},
    "plain": {"rates": "none"},
    "power": {"p": 2},
    "bfloat16": {"dtype": torch.bfloat16},
    "no tokens": {"T": 0},
}


def call(case: str, with_state: bool, *, gradients: bool = True) -> tuple[Inputs, Options]:
    options = CASES[case]
    p = options.get("p", 1)
    state = init_delta_state(2, 2, 4, 3, p).add(1).requires_grad_(gradients) if with_state else None
    tokens = inputs(gradients=gradients, **options)
    return Inputs(*tokens, state), Options(p, 0.5, 2, return_state=with_state, save_errors=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_state", [True, False])
def test_opcheck(case: str, with_state: bool) -> None:
    inputs, options = call(case, with_state)
    torch.library.opcheck(torch.ops.zoo.delta_attention, (*inputs, *options))


def test_opcheck_packed() -> None:
    inputs, options = call("gated", True)
    packed = (None if x is None else x.flatten(0, 1)[None] for x in inputs[:5])
    ends = torch.tensor([0, 4, 10], dtype=torch.int32)
    torch.library.opcheck(torch.ops.zoo.delta_attention, (*packed, inputs.S, ends, *options))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_state", [True, False])
def test_opcheck_backward(case: str, with_state: bool) -> None:
    inputs, options = call(case, with_state, gradients=False)
    o, S, *saved = torch.ops.zoo.delta_attention(*inputs, *options)
    incoming = Incoming(torch.ones_like(o), S.clone() if with_state else None)
    torch.library.opcheck(torch.ops.zoo.delta_attention_backward, (*incoming, *inputs, *saved, *options))


@pytest.mark.parametrize("case", ["gated", "a gate a channel", "plain", "power"])
def test_opcheck_step(case: str) -> None:
    inputs, options = call(case, True, gradients=False)
    tokens = (None if x is None else x[:, 0] for x in inputs[:5])
    torch.library.opcheck(torch.ops.zoo.delta_attention_step, (*tokens, inputs.S, options.p, 0.5))


@given(problems(dtypes=[torch.float32, torch.bfloat16, torch.float64]))
def test_fake_and_meta_tensors_have_the_shapes_of_real_ones(problem: Problem) -> None:
    real, meta = run(problem), run(problem.map(lambda x: x.to("meta")))
    with FakeTensorMode() as mode:
        fake = run(problem.map(mode.from_tensor))
    for name, x in real.items():
        assert (fake[name].shape, fake[name].dtype, fake[name].stride()) == (x.shape, x.dtype, x.stride()), name
        assert (meta[name].shape, meta[name].dtype) == (x.shape, x.dtype), name


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_autocast_lowers_queries_keys_and_values_only(impl: str) -> None:
    tokens, past = inputs(), torch.ones(2, 2, 4, 3)
    q, k, v, *rest = tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, after = delta_attention(*tokens, state=past, return_state=True, impl=impl)
    lowered = [x.bfloat16() for x in (q, k, v)]
    expected, expected_after = delta_attention(*lowered, *rest, state=past, return_state=True, impl=impl)
    assert o.dtype == torch.bfloat16
    assert torch.equal(o, expected)
    assert after.dtype == torch.float32
    assert torch.equal(after, expected_after)
    gradients = torch.autograd.grad(o.float().sum() + after.sum(), tokens)
    for x, y in zip(gradients, torch.autograd.grad(expected.float().sum() + expected_after.sum(), tokens), strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, y)


def test_autocast_takes_mixed_dtypes_and_keeps_float64() -> None:
    q, k, v, *rest = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = delta_attention(q.bfloat16(), k, v, *rest).o
        double = delta_attention(q.double(), k.double(), v.double(), *rest).o
    assert mixed.dtype == torch.bfloat16
    assert double.dtype == torch.float64


def test_autocast_step() -> None:
    tokens = [x.detach()[:, 0] for x in inputs()]
    lowered = [*(x.bfloat16() for x in tokens[:3]), *tokens[3:]]
    ours, theirs = (torch.ones(2, 2, 4, 3) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o = delta_attention_step(*tokens, state=ours)
    assert torch.equal(o, delta_attention_step(*lowered, state=theirs))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rates", ["half", "none"])
@pytest.mark.parametrize(("T", "chunk_size", "p"), [(64, 16, 1), (16, 16, 1), (40, None, 1), (1, 4, 2), (0, None, 1)])
def test_flop_counter_counts_the_formula(T: int, chunk_size: int | None, p: int, rates: str) -> None:
    shape, corrects = (2, T, 2, 4, 3, p, chunk_size or 0), rates != "none"
    tokens = inputs(T, rates=rates)
    with FlopCounterMode(display=False) as counter:
        o, _ = delta_attention(*tokens, p=p, chunk_size=chunk_size)
    assert counter.get_total_flops() == delta_flops(*shape, corrects=corrects)
    with FlopCounterMode(display=False) as counter:
        o.sum().backward()
    assert counter.get_total_flops() == backward_flops(*shape, corrects=corrects)


def test_flop_counter_counts_the_step() -> None:
    with FlopCounterMode(display=False) as counter:
        delta_attention_step(*(x[:, 0] for x in inputs(gradients=False)), state=init_delta_state(2, 2, 4, 3))
    assert counter.get_total_flops() == step_flops(2, 2, 4, 3)


def test_flops_by_hand() -> None:
    """K = 4 (D = 10 for p = 2), V = 3: two reads of the state and an update; a score and a value for each pair."""
    assert step_flops(1, 1, 4, 3) == 3 * 2 * 4 * 3
    assert step_flops(1, 1, 4, 3, 2) == 3 * 2 * 10 * 3
    assert step_flops(1, 1, 4, 3, corrects=False) == 2 * 2 * 4 * 3
    # Alone in a chunk a token meets itself, and there is nothing to correct it by.
    assert delta_flops(1, 1, 1, 4, 3) == 2 * 4 + 2 * 3
    # In chunks of 9 a query sees five keys in the mean, a key four others.
    assert delta_flops(1, 90, 1, 4, 3, 1, 9) == 90 * (3 * 24 + (5 + 4) * 14)


@contextlib.contextmanager
def saved_elements() -> Iterator[list[int]]:
    """Elements of every tensor saved for backward."""
    found: list[int] = []

    def pack(x: Tensor) -> Tensor:
        found.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield found


def test_saved_memory_is_the_inputs_and_the_errors() -> None:
    tokens = inputs(1024)
    with saved_elements() as found:
        o, _ = delta_attention(*tokens)
    assert sum(found) <= sum(x.numel() for x in tokens) + o.numel()


def test_errors_are_not_kept_without_gradients() -> None:
    call = Inputs(*inputs(gradients=False))
    assert chunked.forward(call, Options(1, 1.0)).errors.numel() == 0


class _LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.itemsize)
        return result


@pytest.mark.parametrize("channels", [False, True])
def test_working_memory_does_not_grow_with_tokens(channels: bool) -> None:
    """No tensor, forwards or backwards, is larger than an input but for a chunk's."""
    largest = []
    for T in (512, 1024):
        call, options = Inputs(*inputs(T, channels=channels, gradients=False)), Options(1, 1.0, 16, save_errors=True)
        with _LargestTensor() as mode:
            outputs = chunked.forward(call, options)
            chunked.backward(Incoming(outputs.o, None), call, outputs.saved, options)
        largest.append(mode.largest / T)
    assert largest[1] <= largest[0]
    assert largest[1] <= 2 * 2 * 4  # keys' channels, or gates', of two rows and heads


def test_only_needed_gradients_are_returned() -> None:
    """Gradients through the final state alone, and for one input alone."""
    tokens = inputs(gradients=False)
    tokens[1].requires_grad_()
    _, after = delta_attention(*tokens, return_state=True)
    _, expected = delta_attention(*tokens, return_state=True, impl="recurrent")
    assert after is not None
    assert expected is not None
    found = [torch.autograd.grad(x.sum(), tokens[1])[0] for x in (after, expected)]
    torch.testing.assert_close(*found)
