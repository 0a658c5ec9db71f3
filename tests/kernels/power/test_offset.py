"""An offset to scores: what it is, beside the laws and the error law, whose problems have offsets as well."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.kernels.power import (
    Heads,
    PowerState,
    forward_flops,
    init_power_state,
    power_attention,
    power_attention_step,
    state_size,
    step_flops,
)

from .error_law import check_same, vanishes
from .problems import IMPLEMENTATIONS, Problem, attend, problems, run

every_implementation = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


@every_implementation
def test_zero_changes_no_bit(impl: str) -> None:
    @given(problems(offset=False))
    def check(problem: Problem) -> None:
        for x, y in zip(attend(problem, impl), attend(problem, impl, offset=0), strict=True):
            pairs = zip(x, y, strict=True) if isinstance(x, tuple) else [(x, y)]
            assert all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in pairs)

    check()


@every_implementation
def test_a_number_is_the_same_for_every_head(impl: str) -> None:
    @given(problems(offset=True), st.sampled_from([1.0, -0.5, 2]))
    def check(problem: Problem, offset: float) -> None:
        assert problem.offset is not None
        o, state = attend(problem, impl, offset=torch.full_like(problem.offset, offset))
        found, after = attend(problem, impl, offset=offset)
        for x, y in zip((found, *after), (o, *state), strict=True):
            assert torch.equal(x.nan_to_num(), y.nan_to_num())

    check()


@every_implementation
def test_an_offset_is_one_more_channel(impl: str) -> None:
    """Of keys that all have it alike, and so in the state, whose rows are the same in the same order."""

    @given(problems(offset=True, dtypes=(torch.float32, torch.float64)))
    def check(problem: Problem) -> None:
        assume(not vanishes(problem))
        assert problem.offset is not None
        K = problem.q.shape[-1]
        channel = (problem.offset / problem.scale).expand(problem.q.shape[:-1])[..., None]
        q = torch.cat((problem.q, channel), -1)
        k = torch.cat((problem.k, torch.ones_like(problem.k[..., :1])), -1)
        theirs = run(replace(problem, q=q, k=k, offset=None), impl)
        theirs["doffset"] = theirs["dq"][..., K].sum((0, 1)) / problem.scale
        theirs |= {name: theirs[name][..., :K] for name in ("dq", "dk")}
        check_same(problem, run(problem, impl), theirs)

    check()


@every_implementation
def test_offsets_of_zero_change_rounding_only(impl: str) -> None:
    @given(problems(offset=True, state=False))
    def check(problem: Problem) -> None:
        assert problem.offset is not None
        problem = replace(problem, offset=torch.zeros_like(problem.offset), dS=None, dz=None)
        assume(not vanishes(problem))
        ours, theirs = run(problem, impl), run(replace(problem, offset=None), impl)
        names = ("o", "dq", "dk", "dv", "dlog_g")
        check_same(problem, ours, {name: theirs[name] for name in names if name in theirs})

    check()


def test_high_powers_come_near_softmax() -> None:
    """`(1 + s / p)^p` goes to `exp(s)`: half the error at twice the power."""
    q, k, v = torch.randn(3, 1, 12, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    softmax = nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)
    errors = []
    for p in (8, 16):
        o, _ = power_attention(q, k, v, p=p, scale=2**-0.5 / p, offset=1.0, impl="quadratic")
        errors.append(float((o - softmax).norm()))
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.15)


def test_states_have_a_row_for_each_lower_degree_too() -> None:
    for K, p in ((4, 1), (4, 2), (5, 3), (64, 2)):
        rows = state_size(K, p, offset=True)
        assert rows == math.comb(K + p, p) == sum(math.comb(K + d - 1, d) for d in range(p + 1))
        assert init_power_state(1, 1, K, 2, p, offset=True).S.shape == (1, 1, rows, 2)


def test_the_state_does_not_depend_on_the_offset() -> None:
    q, k, v = torch.randn(3, 1, 9, 2, 4).unbind()
    states = [power_attention(q, k, v, offset=offset, return_state=True).state for offset in (1.0, -3.0)]
    assert all(torch.equal(x, y) for x, y in zip(*states, strict=True))


def test_flops_count_the_wider_state() -> None:
    """Adding the offset to scores is pointwise, and not counted."""
    heads, shape = Heads(4, 2, 2), (2, 64, Heads(4, 2, 2), 4, 3, 2, 16)
    q, k, v = (torch.randn(2, 64, n, width) for n, width in zip(heads, (4, 4, 3), strict=True))
    with FlopCounterMode(display=False) as counter:
        power_attention(q, k, v, offset=1.0, chunk_size=16)
    assert counter.get_total_flops() == forward_flops(*shape, offset=True)
    extra = 15 - 10  # rows
    per_token = 2 * (4 + 2) * extra * (3 + 1)
    assert forward_flops(*shape, offset=True) - forward_flops(*shape) == 2 * 64 * per_token
    state = init_power_state(2, 2, 4, 3, 2, offset=True)
    with FlopCounterMode(display=False) as counter:
        power_attention_step(q[:, 0], k[:, 0], v[:, 0], state=state, offset=1.0)
    assert counter.get_total_flops() == step_flops(2, heads, 4, 3, 2, offset=True)


def test_a_learned_offset_compiles_whole_and_has_its_gradient() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Parameter(torch.tensor([1.0, 0.5]))

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return power_attention(q.tanh(), k, v, offset=self.offset).o * 2

    layer = Layer()
    q, k, v = torch.randn(3, 1, 9, 2, 4).unbind()
    expected = layer(q, k, v)
    (gradient,) = torch.autograd.grad(expected.square().sum(), layer.offset)
    found = torch.compile(layer, fullgraph=True)(q, k, v)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), layer.offset)[0], gradient)


def test_autocast_keeps_offsets() -> None:
    q, k, v = torch.randn(3, 1, 9, 2, 4).unbind()
    offset = torch.tensor([1.001, 0.5], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, _ = power_attention(q, k, v, offset=offset)
    assert torch.equal(o, power_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), offset=offset).o)
    (gradient,) = torch.autograd.grad(o.float().sum(), offset)
    assert gradient.dtype == torch.float32


def test_gradients_of_gradients_go_through_offsets() -> None:
    q, k, v = torch.randn(3, 1, 3, 1, 2, dtype=torch.float64).unbind()
    offset = torch.ones(1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda b: power_attention(q, k, v, offset=b).o, [offset], fast_mode=True)


def test_a_state_without_lower_degrees_is_refused_by_name() -> None:
    q, k, v = torch.zeros(3, 1, 3, 1, 4).unbind()
    with pytest.raises(ValueError, match=r"state\.S: expected \[1, 1, 15, 4\].* and an offset .*was \[1, 1, 10, 4\]"):
        power_attention(q, k, v, offset=1.0, state=init_power_state(1, 1, 4, 4, 2))
    state: PowerState = init_power_state(1, 1, 4, 4, 2, offset=True)
    assert power_attention(q, k, v, offset=1.0, state=state).o.shape == v.shape
