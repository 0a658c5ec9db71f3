"""Decoding one token at a time, in place, is the same as the whole sequence at once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.rwkv7 import init_rwkv7_state, rwkv7_step

from .problems import IMPLEMENTATIONS, TOKENS, Problem, check_same, mix, problems, random_problem


def initial_state(problem: Problem) -> Tensor:
    B, _, H, N = problem.r.shape
    return init_rwkv7_state(B, H, N, dtype=problem.accumulation) if problem.S is None else problem.S.clone()


def step_through(problem: Problem, start: int, stop: int, state: Tensor) -> Tensor:
    """Outputs `[B, stop - start, H, N]`; `state` is written in place."""
    outputs = [problem.v[:, :0]]
    for t in range(start, stop):
        outputs.append(rwkv7_step(*(getattr(problem, name)[:, t] for name in TOKENS), state=state)[:, None])
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_steps_mix_with_whole_sequences(impl: str) -> None:
    @given(problems(resets=False, lengths=False), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, problem.T))
        second = data.draw(st.integers(first, problem.T))
        prefill, state = mix(problem.tokens(0, first), impl)
        state = state.clone()
        buffer = state.data_ptr()
        stepped = step_through(problem, first, second, state)
        assert state.data_ptr() == buffer
        rest, state = mix(replace(problem.tokens(second, problem.T), S=state), impl)
        o, expected = mix(problem, impl)
        check_same(problem, {"o": torch.cat((prefill, stepped, rest), 1), "S_out": state}, {"o": o, "S_out": expected})

    check()


@given(problems(dtypes=[torch.bfloat16, torch.float16], resets=False, lengths=False))
def test_narrow_inputs_keep_a_wide_state(problem: Problem) -> None:
    """A narrow step is the wide step on the same numbers, its output rounded once."""
    wide = problem.map(torch.Tensor.float)
    ours, theirs = initial_state(problem), initial_state(wide)
    o, expected = step_through(problem, 0, problem.T, ours), step_through(wide, 0, problem.T, theirs)
    assert o.dtype == problem.v.dtype
    assert ours.dtype == torch.float32
    assert torch.equal(o, expected.to(o.dtype))
    assert torch.equal(ours, theirs)


def test_state_views_are_written_in_place() -> None:
    """A state may be a slice of a larger buffer, as one layer's part of a cache is."""
    problem = random_problem(2, 3, 2, 4, dtype=torch.float64)
    contiguous = initial_state(problem)
    buffer = torch.stack((contiguous, torch.full_like(contiguous, 7.0)), dim=-1)
    view = buffer[..., 0]
    torch.testing.assert_close(step_through(problem, 0, 3, view), step_through(problem, 0, 3, contiguous))
    torch.testing.assert_close(view, contiguous)
    assert (buffer[..., 1] == 7).all()
