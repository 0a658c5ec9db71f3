"""The chunked form agrees with the float64 recurrence by the error law, and the recurrence with its equations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from zoo.kernels.rwkv7 import chunked, rwkv7

from .problems import DECAYS, IMPLEMENTATIONS, TOKENS, Problem, check_error_law, mix, problems, random_problem, run


def transcribed(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The published equations for one head after another, as they stand: vectors are columns, S is key by value."""
    r, log_w, k, v, kappa, a = (getattr(problem, name).double().numpy() for name in TOKENS)
    B, T, H, N = r.shape
    o, last = np.zeros((B, T, H, N)), np.zeros((B, H, N, N))
    for b, h in np.ndindex(B, H):
        S = np.zeros((N, N)) if problem.S is None else problem.S[b, h].double().numpy()
        for t in range(T):
            at = (b, t, h)
            # As one transition matrix, which the implementations never make.
            transition = np.diag(np.exp(log_w[at])) - np.outer(kappa[at] * a[at], kappa[at])
            S = transition @ S + np.outer(k[at], v[at])
            o[at] = S.T @ r[at]
        last[b, h] = S
    return o, last


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_equations(impl: str) -> None:
    @given(problems(dtypes=[torch.float64], resets=False, lengths=False))
    def check(problem: Problem) -> None:
        for ours, theirs in zip(mix(problem, impl), transcribed(problem), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)

    check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_error_law(dtype: torch.dtype) -> None:
    @given(problems(dtypes=[dtype]))
    def check(problem: Problem) -> None:
        check_error_law(problem, "chunked")

    check()


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("chunk_size", [None, 64])
def test_error_law_on_long_sequences(decays: str, chunk_size: int | None) -> None:
    """More than one segment of chunks, and chunks over which mild decays reach exp(-20) and strong ones underflow."""
    check_error_law(replace(random_problem(1, 530, 2, 16, decays), chunk_size=chunk_size), "chunked")


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("T", [1, 16, 17, 150, 530])
def test_error_law_as_on_a_gpu(decays: str, T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps joined in pairs, of chunks in odd and even numbers, in one segment and in several."""
    monkeypatch.setattr(chunked, "_ON_CPU", chunked._ON_GPU._replace(tokens=256))
    check_error_law(random_problem(2, T, 2, 16, decays), "chunked")
    problem = replace(random_problem(1, min(T, 40), 2, 4, decays, torch.float64), chunk_size=4)
    check_error_law(problem, "chunked")


def test_error_law_on_many_sequences() -> None:
    """More than one block of the batch."""
    check_error_law(random_problem(9, 130, 4, 64), "chunked")


@pytest.mark.parametrize("log_w", [-1e-30, -0.607, -20.0, -87.0, -104.0, -800.0, -1e30, -torch.inf])
def test_any_decay_is_exact_and_finite(log_w: float) -> None:
    problem = random_problem(1, 50, 2, 8)
    problem = replace(problem, log_w=torch.full_like(problem.log_w, log_w))
    for name, x in run(problem, "chunked").items():
        assert x.isfinite().all(), name
    check_error_law(problem, "chunked")


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_gradcheck(chunk_size: int) -> None:
    problem = random_problem(1, 5, 2, 3, dtype=torch.float64)
    tensors = [x.requires_grad_() for x in problem.tensors.values()]

    def mixed(*tensors: Tensor) -> tuple[Tensor, ...]:
        *tokens, state = tensors
        o, after = rwkv7(*tokens, state=state, return_state=True, chunk_size=chunk_size)
        return o, after

    assert torch.autograd.gradcheck(mixed, tensors)
