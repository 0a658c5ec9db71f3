"""Decoding one token at a time, in place, is the same as the whole sequence at once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.power import PowerState, init_power_state, power_attention_step

from .error_law import check_same, check_steps, vanishes
from .problems import IMPLEMENTATIONS, Problem, attend, problems

DTYPES = (torch.float32, torch.float64)


def step_through(problem: Problem, start: int, stop: int, state: PowerState) -> Tensor:
    """Outputs `[B, stop - start, Ho, V]`; `state` is written in place."""
    outputs = [problem.v.new_empty(problem.q.shape[0], 0, problem.heads.output, problem.v.shape[-1])]
    for t in range(start, stop):
        q, k, v, log_g = (None if x is None else x[:, t] for x in (problem.q, problem.k, problem.v, problem.log_g))
        outputs.append(power_attention_step(q, k, v, log_g, state=state, **problem.step_options)[:, None])
    return torch.cat(outputs, 1)


def initial_state(problem: Problem) -> PowerState:
    if problem.state is not None:
        return PowerState(problem.state.S.clone(), problem.state.z.clone())
    K, V = problem.q.shape[-1], problem.v.shape[-1]
    return init_power_state(
        problem.q.shape[0], problem.heads.state, K, V, problem.p, offset=problem.offset is not None,
        dtype=problem.accumulation,
    )  # fmt: skip


def without_gradients(problem: Problem) -> Problem:
    return replace(problem, do=None, dS=None, dz=None)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_steps_mix_with_whole_sequences(impl: str) -> None:
    @given(problems(dtypes=DTYPES), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        assume(not vanishes(problem))
        T = problem.q.shape[1]
        first = data.draw(st.integers(0, T))
        second = data.draw(st.integers(first, T))
        problem = without_gradients(problem)
        prefill, state = attend(problem.tokens(0, first), impl)
        state = PowerState(state.S.clone(), state.z.clone())
        buffers = [x.data_ptr() for x in state]
        stepped = step_through(problem, first, second, state)
        assert [x.data_ptr() for x in state] == buffers
        rest, state = attend(replace(problem.tokens(second, T), S=state.S, z=state.z), impl)
        ours = {"o": torch.cat((prefill, stepped, rest), 1), "S_out": state.S, "z_out": state.z}
        o, state = attend(problem, impl)
        check_same(problem, ours, {"o": o, "S_out": state.S, "z_out": state.z})

    check()


@given(problems(dtypes=(torch.float32,), shortest=1))
def test_a_step_meets_its_own_token_as_a_sequence_does(problem: Problem) -> None:
    """From the first position on, an error that no monomials of the token's own amplify: chunks of one token."""
    assume(not vanishes(problem))
    problem = without_gradients(problem)
    state = initial_state(problem)
    o = step_through(problem, 0, problem.q.shape[1], state)
    ours = {"o": o, "S_out": state.S, "z_out": state.z}
    check_steps(problem, ours)


@pytest.mark.parametrize(("p", "K"), [(2, 64), (4, 16)])
def test_a_token_alone_gives_its_value(p: int, K: int) -> None:
    """Its weight cancels, and not its rounding: of many queries some are nearly orthogonal to their key."""
    q, k, v = torch.randn(3, 500, 1, K, generator=torch.Generator().manual_seed(p)).unbind()
    o = power_attention_step(q, k, v, state=init_power_state(500, 1, K, K, p), p=p)
    torch.testing.assert_close(o, v, rtol=1e-6, atol=1e-6)


@given(problems(dtypes=[torch.bfloat16, torch.float16], gates=["none", "mild", "resets"]))
def test_narrow_inputs_keep_a_wide_state(problem: Problem) -> None:
    """A narrow step is the wide step on the same numbers, its output rounded once."""
    problem = without_gradients(problem)
    wide = problem.map(torch.Tensor.float)
    ours, theirs = initial_state(problem), initial_state(wide)
    T = problem.q.shape[1]
    o, expected = step_through(problem, 0, T, ours), step_through(wide, 0, T, theirs)
    assert o.dtype == problem.v.dtype
    assert torch.equal(o, expected.to(o.dtype))
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, y)


# In float64, since float32 sums in another order may differ by what the problem amplifies.
@given(problems(dtypes=(torch.float64,), shortest=1))
def test_state_views_are_written_in_place(problem: Problem) -> None:
    """A state may be a slice of a larger buffer, as one layer's part of a cache is."""
    problem, contiguous = without_gradients(problem), initial_state(problem)
    S, z = (torch.stack((x, torch.full_like(x, 7.0)), dim=-1) for x in contiguous)
    view = PowerState(S[..., 0], z[..., 0])
    torch.testing.assert_close(step_through(problem, 0, 1, view), step_through(problem, 0, 1, contiguous))
    torch.testing.assert_close(view, contiguous)
    assert (S[..., 1] == 7).all()
    assert (z[..., 1] == 7).all()


def test_later_steps_copy_nothing_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they could not inside a CUDA graph."""
    q, k, v = (torch.randn(2, 1, 12) for _ in range(3))
    state = init_power_state(2, 1, 12, 12, 3)
    with torch.inference_mode():
        power_attention_step(q, k, v, None, state=state, p=3)
    monkeypatch.delattr(torch, "from_numpy")
    power_attention_step(q, k, v, None, state=state, p=3)
