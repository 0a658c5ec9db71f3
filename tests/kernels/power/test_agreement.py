"""Every implementation agrees with the float64 recurrence, in results and in gradients, by the error law."""

import math

import pytest
import torch
from hypothesis import assume, given
from torch import Tensor

from zoo.kernels.power import PowerState, power_attention

from .error_law import check_error_law, check_error_law_to_last_digits, norms, tolerances, vanishes
from .problems import IMPLEMENTATIONS, Problem, make_state, problems, run

WIDE, NARROW = (torch.float32, torch.float64), (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [*WIDE, *NARROW], ids=str)
def test_error_law(impl: str, dtype: torch.dtype) -> None:
    @given(problems(dtypes=[dtype]))
    def check(problem: Problem) -> None:
        assume(not vanishes(problem))
        check_error_law(problem, impl)

    check()


def gaussian_problem(T: int, K: int, V: int, gate: float, dtype: torch.dtype) -> Problem:
    """p = 2, normalised, two query heads to a state, gates around `gate`, in chunks of 64."""
    random = torch.Generator().manual_seed(T + K)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    q, k, v, do = normal(1, T, 2, K), normal(1, T, 1, K), normal(1, T, 1, V), normal(1, T, 2, V)
    log_g = 2 * gate * torch.rand(1, T, 1, generator=random)
    return Problem(q, k, v, log_g, None, None, do, None, None, 2, 1 / math.sqrt(K), True, 64)


def test_error_law_where_the_reference_is_uncertain() -> None:
    """At p = 4 a score of 1e-4 beside terms of size 1 leaves nothing of its 15 monomials' sum, in float64 neither."""
    q = torch.tensor([-1.1847, 1.2858, -2.4872]).view(1, 1, 1, 3)
    k = torch.tensor([0.6901, -1.1421, -0.9190]).view(1, 1, 1, 3)
    k = k - (q * k).sum() / (q * q).sum() * q + 1e-5 * q
    v, do = torch.full((1, 1, 1, 1), 0.521), torch.ones(1, 1, 1, 1)
    check_error_law(Problem(q, k, v, None, None, None, do, None, None, 4, 3**-0.5, True, None), "quadratic")


def test_error_law_beside_one_large_monomial() -> None:
    """What is small beside it is rounded to a few digits, and copies of it all alike."""
    random = torch.Generator().manual_seed(0)
    q, k, v, do = (torch.randn(1, 3, 64, K, generator=random) for K in (6, 6, 1, 1))
    k[:, -1] = torch.tensor([-3.3312, -0.7479, 1.1173, 0.2981, 0.1099, -0.6463])
    dS = torch.randn(1, 64, 126, 1, generator=random)
    problem = Problem(q, k, v, None, None, None, do, dS, None, 4, 6**-0.5, False, None)
    check_error_law_to_last_digits(problem, "chunked")


@pytest.mark.parametrize("T", [1, 15, 17])
@pytest.mark.parametrize("gate", [-1.0, -50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_law_on_short_sequences(T: int, gate: float, dtype: torch.dtype) -> None:
    check_error_law(gaussian_problem(T, 32, 32, gate, dtype), "chunked")


@pytest.mark.parametrize("T", [1000, 1025])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_law_on_long_sequences(T: int, dtype: torch.dtype) -> None:
    """The law with next to nothing for `tiny`: the errors of many tokens leave no room for luck."""
    check_error_law_to_last_digits(gaussian_problem(T, 16, 16, -1.0, dtype), "chunked")


@pytest.mark.parametrize("T", [1000, 1025])
def test_error_law_on_long_sequences_with_strong_gates(T: int) -> None:
    """Most denominators are one key's, and some of those nearly vanish."""
    check_error_law(gaussian_problem(T, 16, 16, -50.0, torch.float32), "chunked")
    check_error_law_to_last_digits(gaussian_problem(T, 16, 16, -50.0, torch.bfloat16), "chunked")


def test_bounds_are_tight_where_nothing_cancels() -> None:
    """`tiny` is a few of float32's last digits, unless a problem is ill-conditioned."""
    problem = gaussian_problem(40, 8, 8, -1.0, torch.float32)
    reference = run(problem.double(), "recurrent")
    for name, tiny in tolerances(problem, 64, reference).items():
        if name in ("o", "S_out", "z_out"):
            assert norms(tiny)[0] <= 1.5e-5 * norms(reference[name])[0], name


@pytest.mark.parametrize(("p", "normalize"), [(1, False), (2, True), (2, False), (3, False), (4, True)])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("has_offset", [True, False])
def test_gradcheck(p: int, normalize: bool, gated: bool, has_offset: bool) -> None:
    random = torch.Generator().manual_seed(p)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()

    q, k, v = normal(1, 5, 2, 2), normal(1, 5, 1, 2), normal(1, 5, 2, 2)
    log_g = (-torch.rand(1, 5, 2, generator=random, dtype=torch.float64)).requires_grad_() if gated else None
    S, z = (x.requires_grad_() for x in make_state(1, 2, 2, 2, p, 3, random, offset=has_offset))
    offset = normal(2) if has_offset else 0.0

    def attend(*inputs: Tensor | None) -> tuple[Tensor, ...]:
        q, k, v, log_g, S, z, offset = inputs
        o, state = power_attention(
            q, k, v, log_g, p=p, normalize=normalize, offset=offset, state=PowerState(S, z), return_state=True,
            chunk_size=2,
        )  # fmt: skip
        return o, *state

    assert torch.autograd.gradcheck(attend, (q, k, v, log_g, S, z, offset))
