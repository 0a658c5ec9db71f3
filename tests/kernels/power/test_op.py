"""Power attention as `torch.library` knows it: fakes, autograd, autocast, FLOPs; and memory linear in T."""

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from zoo.kernels.power import (
    Heads,
    PowerState,
    chunked,
    forward_flops,
    init_power_state,
    power_attention,
    power_attention_step,
    step_flops,
)
from zoo.kernels.power.call import Incoming, Inputs, Options
from zoo.kernels.power.flops import backward_flops

from ..memory import LargestTensor, saved_tensors
from .problems import IMPLEMENTATIONS, Problem, problems, run

GROUPED_QUERIES = Heads(4, 2, 2)


def inputs(
    heads: Heads, T: int = 5, *, B: int = 2, K: int = 4, V: int = 3, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """q, k, v and log gates, with gradients."""
    random = torch.Generator().manual_seed(0)
    shapes = ((B, T, heads.query, K), (B, T, heads.key, K), (B, T, heads.value, V))
    tensors = [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]
    return [*tensors, (-torch.rand(B, T, heads.value, generator=random)).requires_grad_()]


def state(B: int, heads: Heads, p: int, *, K: int = 4, V: int = 3) -> list[Tensor]:
    return [x + 1 for x in init_power_state(B, heads.state, K, V, p)]


@given(problems(dtypes=[torch.float32, torch.bfloat16, torch.float64]))
def test_fake_tensors_have_the_shapes_of_real_ones(problem: Problem) -> None:
    real = run(problem, "chunked")
    with FakeTensorMode() as mode:
        fake = run(problem.map(mode.from_tensor), "chunked")
    for name, x in real.items():
        assert (fake[name].shape, fake[name].dtype) == (x.shape, x.dtype), name
        if name in ("o", "S_out", "z_out"):
            assert fake[name].stride() == x.stride(), name


@given(problems(dtypes=[torch.float32]))
def test_meta_tensors_have_the_shapes_of_real_ones(problem: Problem) -> None:
    real, meta = run(problem, "chunked"), run(problem.map(lambda x: x.to("meta")), "chunked")
    assert {name: x.shape for name, x in meta.items()} == {name: x.shape for name, x in real.items()}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_autocast_lowers_queries_keys_and_values_only(impl: str) -> None:
    q, k, v, log_g = inputs(GROUPED_QUERIES)
    past = PowerState(*state(2, GROUPED_QUERIES, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, after = power_attention(q, k, v, log_g, state=past, return_state=True, impl=impl)
    lowered = [x.bfloat16() for x in (q, k, v)]
    expected, expected_after = power_attention(*lowered, log_g, state=past, return_state=True, impl=impl)
    assert after is not None
    assert o.dtype == torch.bfloat16
    assert torch.equal(o, expected)
    for x, y in zip(after, expected_after, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, y)
    gradients = torch.autograd.grad(o.float().sum() + after.S.sum(), (q, k, v, log_g))
    expected_gradients = torch.autograd.grad(expected.float().sum() + expected_after.S.sum(), (q, k, v, log_g))
    for x, y in zip(gradients, expected_gradients, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, y)


def test_autocast_takes_mixed_dtypes_and_keeps_float64() -> None:
    q, k, v, log_g = inputs(GROUPED_QUERIES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = power_attention(q.bfloat16(), k, v, log_g).o
        double = power_attention(q.double(), k.double(), v.double(), log_g).o
    assert mixed.dtype == torch.bfloat16
    assert double.dtype == torch.float64


def test_autocast_step() -> None:
    q, k, v, log_g = (x.detach()[:, 0] for x in inputs(GROUPED_QUERIES))
    ours, theirs = (PowerState(*state(2, GROUPED_QUERIES, 2)) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o = power_attention_step(q, k, v, log_g, state=ours)
    assert torch.equal(o, power_attention_step(q.bfloat16(), k.bfloat16(), v.bfloat16(), log_g, state=theirs))
    assert torch.equal(ours.S, theirs.S)
    assert torch.equal(ours.z, theirs.z)


@pytest.mark.parametrize(
    ("T", "chunk_size", "with_state"), [(64, 16, False), (16, 16, False), (16, 16, True), (1, 4, True)]
)
def test_flop_counter_counts_the_formula(T: int, chunk_size: int, with_state: bool) -> None:
    q, k, v, log_g = inputs(GROUPED_QUERIES, T)
    past = PowerState(*state(2, GROUPED_QUERIES, 2)) if with_state else None
    shape = (2, T, GROUPED_QUERIES, 4, 3, 2, chunk_size)
    with FlopCounterMode(display=False) as counter:
        o, _ = power_attention(q, k, v, log_g, state=past, chunk_size=chunk_size)
    assert counter.get_total_flops() == forward_flops(*shape, with_state=with_state)
    with FlopCounterMode(display=False) as counter:
        o.sum().backward()
    assert counter.get_total_flops() == backward_flops(*shape, with_state=with_state)


def test_flop_counter_counts_the_step() -> None:
    q, k, v, log_g = (x.detach()[:, 0] for x in inputs(GROUPED_QUERIES))
    with FlopCounterMode(display=False) as counter:
        power_attention_step(q, k, v, log_g, state=PowerState(*state(2, GROUPED_QUERIES, 2)))
    assert counter.get_total_flops() == step_flops(2, GROUPED_QUERIES, 4, 3, 2)


def test_flops_by_hand() -> None:
    """p = 2, K = 4 (D = 10), V = 3: four output heads read ten rows of S and z, two states are updated."""
    read, update = 2 * 4 * 10 * (3 + 1), 2 * 2 * 10 * (3 + 1)
    # A token meets itself: one score of K products and one weighted value for each output head.
    pair = 2 * 4 * 4 + 2 * 4 * 3
    assert step_flops(1, GROUPED_QUERIES, 4, 3, 2) == read + update + pair
    assert forward_flops(1, 1, GROUPED_QUERIES, 4, 3, 2, 8) == pair  # alone in a chunk
    # Chunks of 9 have five keys a query in the mean.
    expected = 90 * (read + update + 5 * pair)
    assert forward_flops(1, 90, GROUPED_QUERIES, 4, 3, 2, 9) == expected


def test_saved_memory_is_linear_in_tokens() -> None:
    totals = []
    for T in (128, 256):
        with saved_tensors() as saved:
            power_attention(*inputs(GROUPED_QUERIES, T), chunk_size=16)
        totals.append(sum(x.nbytes for x in saved))
    assert totals[1] == 2 * totals[0]
    q, k, v, log_g = inputs(GROUPED_QUERIES, 128)
    o = power_attention(q, k, v, log_g).o
    # The inputs, the output and its denominator.
    assert totals[0] <= sum(x.nbytes for x in (q, k, v, log_g, o)) + o[..., 0].nbytes


def test_working_memory_is_linear_in_tokens() -> None:
    """No tensor, forwards or backwards, is larger than the inputs but those of one chunk."""
    options = Options(2, 1.0, normalize=True, chunk_size=16)
    largest = []
    for T in (256, 512):
        given = Inputs(*(x.detach() for x in inputs(GROUPED_QUERIES, T, B=1)))
        with LargestTensor() as mode:
            outputs = chunked.forward(given, options)
            chunked.backward(Incoming(outputs.o, None, None), given, outputs.saved(options), options)
        largest.append(mode.largest)
    assert largest[1] <= 2 * largest[0]


def test_only_needed_gradients_are_returned() -> None:
    """Gradients through the final state alone, and for one input alone."""
    q, k, v, log_g = inputs(GROUPED_QUERIES)
    _, after = power_attention(q.detach(), k, v.detach(), log_g.detach(), return_state=True)
    assert after is not None
    (dk,) = torch.autograd.grad(after.z.sum(), k)
    leaf = k.detach().requires_grad_()
    _, expected = power_attention(q.detach(), leaf, v.detach(), log_g.detach(), return_state=True, impl="recurrent")
    torch.testing.assert_close(dk, torch.autograd.grad(expected.z.sum(), leaf)[0])
