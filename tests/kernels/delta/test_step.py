"""Decoding one token at a time, in place, is the same as the whole sequence at once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.delta import delta_attention_step, init_delta_state

from .problems import IMPLEMENTATIONS, TOKENS, Problem, attend, check_same, problems, random_problem


def initial_state(problem: Problem) -> Tensor:
    if problem.S is not None:
        return problem.S.clone()
    B, _, H, V = problem.v.shape
    return init_delta_state(B, H, problem.k.shape[-1], V, problem.p, dtype=problem.accumulation)


def step_through(problem: Problem, start: int, stop: int, state: Tensor) -> Tensor:
    """Outputs `[B, stop - start, Hv, V]`; `state` is written in place."""
    outputs = [problem.v[:, :0]]
    for t in range(start, stop):
        tokens = (None if (x := getattr(problem, name)) is None else x[:, t] for name in TOKENS)
        outputs.append(delta_attention_step(*tokens, state=state, p=problem.p, scale=problem.scale)[:, None])
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_steps_mix_with_whole_sequences(impl: str) -> None:
    @given(problems(), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, problem.T))
        second = data.draw(st.integers(first, problem.T))
        prefill, state = attend(problem.tokens(0, first), impl)
        state = state.clone()
        buffer = state.data_ptr()
        stepped = step_through(problem, first, second, state)
        assert state.data_ptr() == buffer
        rest, state = attend(replace(problem.tokens(second, problem.T), S=state), impl)
        o, expected = attend(problem, impl)
        check_same(problem, {"o": torch.cat((prefill, stepped, rest), 1), "S_out": state}, {"o": o, "S_out": expected})

    check()


@given(problems(dtypes=[torch.bfloat16, torch.float16]))
def test_narrow_inputs_keep_a_wide_state(problem: Problem) -> None:
    """A narrow step is the wide step on the same numbers, its output rounded once."""
    wide = problem.map(torch.Tensor.float)
    ours, theirs = initial_state(problem), initial_state(wide)
    o, expected = step_through(problem, 0, problem.T, ours), step_through(wide, 0, problem.T, theirs)
    assert o.dtype == problem.v.dtype
    assert ours.dtype == torch.float32
    assert torch.equal(o, expected.to(o.dtype))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("p", [1, 2])
def test_state_views_are_written_in_place(p: int) -> None:
    """A state may be a slice of a larger buffer, as one layer's part of a cache is."""
    problem = random_problem(3, p=p, shape=(2, 2, 4, 4), dtype=torch.float64)
    contiguous = initial_state(problem)
    buffer = torch.stack((contiguous, torch.full_like(contiguous, 7.0)), dim=-1)
    view = buffer[..., 0]
    torch.testing.assert_close(step_through(problem, 0, 3, view), step_through(problem, 0, 3, contiguous))
    torch.testing.assert_close(view, contiguous)
    assert (buffer[..., 1] == 7).all()


def test_later_steps_copy_nothing_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they could not inside a CUDA graph."""
    problem = random_problem(1, p=3, shape=(2, 1, 11, 5))
    state = initial_state(problem)
    with torch.inference_mode():
        step_through(problem, 0, 1, state)
    monkeypatch.delattr(torch, "from_numpy")
    step_through(problem, 0, 1, state)
