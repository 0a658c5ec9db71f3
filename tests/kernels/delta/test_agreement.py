"""The chunked form agrees with the float64 recurrence by the error law, and the recurrence with its equations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from zoo.kernels.delta import chunked, delta_attention
from zoo.kernels.power.expansion import coefficient_array, expand

from .plain import run_in_chunks
from .problems import GATES, IMPLEMENTATIONS, Problem, attend, check_error_law, problems, random_problem, run, scale


def transcribed(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The published equations for one head after another, as they stand: vectors are columns, S is key by value.

    Keys and queries are expanded symmetrically, which makes their inner product a power; the packed state leaves the
    coefficients to the query.
    """
    (B, T, H, V), K, p = problem.v.shape, problem.k.shape[-1], problem.p
    root = np.sqrt(coefficient_array(K, p))
    q = root * expand(problem.scale * problem.q.double(), p).numpy()
    k = root * expand(problem.k.double(), p).numpy()
    v = problem.v.double().numpy()
    o, last = np.zeros((B, T, H, V)), np.zeros((B, H, len(root), V))
    for b, h in np.ndindex(B, H):
        S = np.zeros((len(root), V)) if problem.S is None else problem.S[b, h].double().numpy() * root[:, None]
        for t in range(T):
            key, query = (x[b, t, h * x.shape[2] // H] for x in (k, q))
            gate = 1.0 if problem.log_g is None else np.exp(problem.log_g[b, t, h].double().numpy())
            rate = 1.0 if problem.beta is None else float(problem.beta[b, t, h])
            removal = 0.0 if problem.beta is None else rate
            transition = (np.eye(len(root)) - removal * np.outer(key, key)) @ np.diag(gate * np.ones(len(root)))
            S = transition @ S + rate * np.outer(key, v[b, t, h])
            o[b, t, h] = S.T @ query
        last[b, h] = S / root[:, None]
    return o, last


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_equations(impl: str) -> None:
    @given(problems(dtypes=[torch.float64]))
    def check(problem: Problem) -> None:
        for ours, theirs in zip(attend(problem, impl), transcribed(problem), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)

    check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_error_law(dtype: torch.dtype) -> None:
    @given(problems(dtypes=[dtype]))
    def check(problem: Problem) -> None:
        check_error_law(problem, "chunked")

    check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gates", ["none", "mild", "strong"])
def test_error_law_beside_plain_chunks(dtype: torch.dtype, gates: str) -> None:
    problem = random_problem(200, gates=gates, dtype=dtype)
    check_error_law(problem, "chunked", run_in_chunks(problem))


@pytest.mark.parametrize("T", [1, 15, 17, 150])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("channels", [False, True])
def test_error_law_at_any_length(T: int, gates: str, channels: bool) -> None:
    check_error_law(random_problem(T, gates=gates, channels=channels), "chunked")


@pytest.mark.parametrize("gates", ["none", "mild", "strong"])
@pytest.mark.parametrize("rates", ["none", "half", "near two"])
@pytest.mark.parametrize("channels", [False, True])
def test_error_law_on_long_sequences(gates: str, rates: str, channels: bool) -> None:
    check_error_law(random_problem(1000, gates=gates, rates=rates, channels=channels), "chunked")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rates", ["ones", "near two"])
@pytest.mark.parametrize("gates", ["none", "mild"])
def test_error_law_on_repeated_keys(dtype: torch.dtype, rates: str, gates: str) -> None:
    """Every token corrects what all others wrote: in systems of the errors all entries are about as large as one."""
    problem = random_problem(200, gates=gates, rates=rates, dtype=dtype)
    problem = replace(problem, k=problem.k[:, :1].expand(problem.k.shape))
    check_error_law(problem, "chunked", run_in_chunks(problem))


@pytest.mark.parametrize("p", [2, 3])
@pytest.mark.parametrize("gates", ["none", "mild", "strong"])
@pytest.mark.parametrize("rates", ["none", "half", "near two"])
def test_error_law_of_powers_on_long_sequences(p: int, gates: str, rates: str) -> None:
    problem = random_problem(300, gates=gates, rates=rates, p=p, shape=(1, 2, 8, 8))
    check_error_law(replace(problem, chunk_size=32), "chunked")


def test_error_law_on_many_sequences() -> None:
    """More than one block of the batch."""
    check_error_law(random_problem(130, shape=(9, 8, 16, 16)), "chunked")


@pytest.mark.parametrize("channels", [False, True])
def test_states_are_computed_again_in_segments(channels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_STATE_ELEMENTS", 0)
    for T in (1, 7, 8, 9, 150):
        problem = replace(random_problem(T, channels=channels, shape=(2, 2, 4, 4)), chunk_size=4)
        check_error_law(problem, "chunked")
        check_error_law(replace(problem, dS=None), "chunked")


@pytest.mark.parametrize("log_g", [-1e-30, -0.607, -20.0, -87.0, -104.0, -800.0, -1e30, -torch.inf])
@pytest.mark.parametrize("channels", [False, True])
def test_any_gate_is_exact_and_finite(log_g: float, channels: bool) -> None:
    problem = random_problem(50, channels=channels, shape=(1, 2, 8, 8))
    assert problem.log_g is not None
    problem = replace(problem, log_g=torch.full_like(problem.log_g, log_g))
    for name, x in run(problem, "chunked").items():
        assert x.isfinite().all(), name
    check_error_law(problem, "chunked")


@pytest.mark.slow
@pytest.mark.parametrize("channels", [False, True])
def test_a_million_tokens(channels: bool) -> None:
    """Errors do not grow with the length: float32 beside float64 in other chunks."""
    problem = random_problem(1_000_000, channels=channels, shape=(1, 1, 8, 8))
    ours, reference = run(problem, "chunked"), run(replace(problem.double(), chunk_size=500), "chunked")
    for name, exact in reference.items():
        error = float((ours[name].double() - exact).norm())
        assert error <= 1e-5 * scale(problem, name, exact), name


@pytest.mark.parametrize(
    ("gates", "channels", "p"),
    [
        ("none", False, 1),
        ("mild", False, 1),
        ("mild", True, 1),
        ("none", False, 2),
        ("mild", False, 2),
        ("mild", False, 3),
    ],
)
@pytest.mark.parametrize("rates", ["none", "any"])
def test_gradcheck(gates: str, channels: bool, p: int, rates: str) -> None:
    options = {"gates": gates, "channels": channels, "rates": rates, "p": p}
    problem = random_problem(5, **options, shape=(1, 2, 3, 2), dtype=torch.float64)
    # One query and key head for two values; strengths of keys are free here.
    problem = replace(problem, q=problem.q[:, :, :1], k=problem.k[:, :, :1])
    tensors = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}

    def attended(*tensors_: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(tensors, tensors_, strict=True))
        state = given.pop("S")
        o, after = delta_attention(**given, p=p, state=state, return_state=True, chunk_size=2)
        return o, after

    assert torch.autograd.gradcheck(attended, tuple(tensors.values()))
