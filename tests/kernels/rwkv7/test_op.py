"""RWKV-7 as `torch.library` knows it: fakes, autograd, autocast, FLOPs; and memory linear in T."""

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from zoo.kernels.rwkv7 import chunked, init_rwkv7_state, rwkv7, rwkv7_flops, rwkv7_step
from zoo.kernels.rwkv7.call import Incoming, Saved, Tokens
from zoo.kernels.rwkv7.flops import backward_flops, step_flops

from ..memory import LargestTensor, saved_tensors
from .problems import IMPLEMENTATIONS, TOKENS, Problem, problems, random_problem, run


def inputs(
    T: int = 5, *, B: int = 2, H: int = 2, N: int = 4, dtype: torch.dtype = torch.float32, gradients: bool = True
) -> list[Tensor]:
    """r, log_w, k, v, kappa and a."""
    problem = random_problem(B, T, H, N, dtype=dtype)
    return [getattr(problem, name).requires_grad_(gradients) for name in TOKENS]


@given(problems(dtypes=[torch.float32, torch.bfloat16, torch.float64], lengths=False, resets=False))
def test_fake_and_meta_tensors_have_the_shapes_of_real_ones(problem: Problem) -> None:
    real, meta = run(problem), run(problem.map(lambda x: x.to("meta")))
    with FakeTensorMode() as mode:
        fake = run(problem.map(mode.from_tensor))
    for name, x in real.items():
        assert (fake[name].shape, fake[name].dtype, fake[name].stride()) == (x.shape, x.dtype, x.stride()), name
        assert (meta[name].shape, meta[name].dtype) == (x.shape, x.dtype), name


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_autocast_changes_nothing(impl: str) -> None:
    tokens = inputs()
    expected = rwkv7(*tokens, return_state=True, impl=impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rwkv7(*tokens, return_state=True, impl=impl)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, y)
    gradients = [torch.autograd.grad(o.sum() + state.sum(), tokens) for o, state in (found, expected)]
    for x, y in zip(*gradients, strict=True):
        assert torch.equal(x, y)


def test_autocast_changes_no_step() -> None:
    tokens = [x[:, 0] for x in inputs(gradients=False)]
    ours, theirs = (torch.ones(2, 2, 4, 4) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o = rwkv7_step(*tokens, state=ours)
    assert torch.equal(o, rwkv7_step(*tokens, state=theirs))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("T", "chunk_size"), [(64, 16), (16, 16), (40, None), (1, 4), (0, None)])
def test_flop_counter_counts_the_formula(T: int, chunk_size: int | None) -> None:
    with FlopCounterMode(display=False) as counter:
        o, _ = rwkv7(*inputs(T), chunk_size=chunk_size)
    assert counter.get_total_flops() == rwkv7_flops(2, T, 2, 4, chunk_size)
    with FlopCounterMode(display=False) as counter:
        o.sum().backward()
    assert counter.get_total_flops() == backward_flops(2, T, 2, 4, chunk_size)


def test_flop_counter_counts_the_step() -> None:
    with FlopCounterMode(display=False) as counter:
        rwkv7_step(*(x[:, 0] for x in inputs(gradients=False)), state=init_rwkv7_state(2, 2, 4))
    assert counter.get_total_flops() == step_flops(2, 2, 4)


def test_flops_by_hand() -> None:
    """N = 4: two reads of the state and two updates, 32 each; alone in a chunk, r meets two vectors and two values."""
    assert step_flops(1, 1, 4) == 4 * 32
    assert rwkv7_flops(1, 1, 1, 4) == 4 * 32 + 4 * 8
    # In chunks of 4 there are in the mean 1.5 earlier tokens (two scores, one value, two columns of the solve each)
    # and 2.5 that the output sees.
    assert rwkv7_flops(1, 8, 1, 4, 4) == 8 * (4 * 32 + 1.5 * 5 * 8 + 2.5 * 4 * 8)


def test_saved_memory_is_the_inputs_and_a_few_states() -> None:
    tokens = inputs(1024, N=16)
    with saved_tensors() as saved:
        rwkv7(*tokens)
    assert sum(x.numel() for x in saved) <= sum(x.numel() for x in tokens) + (1024 // 256 + 1) * 2 * 2 * 16 * 16


def test_working_memory_does_not_grow_with_tokens() -> None:
    """No tensor, forwards or backwards, is larger than an input but for a segment's."""
    largest = []
    for T in (1024, 2048):
        tokens = Tokens(*inputs(T, B=1, gradients=False))
        with LargestTensor() as mode:
            o, _, *kept = chunked.forward(tokens, None, 0)
            chunked.backward(Incoming(o, None), tokens, Saved(None, *kept), 0)
        largest.append(mode.largest)
    assert largest[0] <= 256 * 2 * 64  # two scores by two of 16 tokens, for each token and head
    assert largest[1] == largest[0]


def test_only_needed_gradients_are_returned() -> None:
    """Gradients through the final state alone, and for one input alone."""
    tokens = inputs(gradients=False)
    tokens[2].requires_grad_()
    _, after = rwkv7(*tokens, return_state=True)
    _, expected = rwkv7(*tokens, return_state=True, impl="recurrent")
    assert after is not None
    assert expected is not None
    found = [torch.autograd.grad(x.sum(), tokens[2])[0] for x in (after, expected)]
    torch.testing.assert_close(*found)
