"""The Triton kernels on a GPU: the error law beside the textbook form in chunks, in the same dtype."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from zoo.kernels.delta import delta_attention
from zoo.kernels.delta.call import Inputs, Options

from ..plain import run_in_chunks
from ..problems import DIGITS, Problem, random_problem, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
# What a form in chunks loses where there is none to compare with: roundings of operands, added up.
ROUNDINGS = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-5}


def make_problem(T: int = 1000, *, repeated: bool = False, **options: object) -> Problem:
    problem = random_problem(T, **{"shape": (1, 2, 64, 64), "dtype": torch.bfloat16, **options})
    problem = replace(problem, k=problem.k[:, :1].expand(problem.k.shape)) if repeated else problem
    return problem.map(lambda x: x.cuda())


def check_error_law(problem: Problem, *, has_plain: bool) -> None:
    """Assert `err(ours) <= 1.5 err(plain) + digits`, in L2, against the float64 recurrence.

    The textbook form knows neither gates of channels, nor no rates, nor resets; there errors are few roundings.
    """
    exact, ours = run(problem.double(), "recurrent"), run(problem, "triton")
    plain = run_in_chunks(problem) if has_plain else None
    broken = []
    for name, reference in exact.items():
        error, size = float((ours[name].double() - reference).norm()), float(reference.norm())
        if name == "dlog_g":  # a state times its gradient, among others, whose terms cancel
            assert problem.S is not None
            assert problem.dS is not None
            size = max(size, float((problem.S * problem.dS).norm()))
        allowed = ROUNDINGS[problem.q.dtype] * size
        if plain is not None:
            digits = (DIGITS[torch.float32] if name != "dlog_g" else ROUNDINGS[problem.q.dtype]) * size
            allowed = 1.5 * float((plain[name].double() - reference).norm()) + digits
        if not error <= allowed:
            broken.append(f"{name}: {error:.2e}, allowed {allowed:.2e}")
    assert not broken, "; ".join(broken)


@pytest.mark.parametrize("T", [1, 15, 17, 63, 64, 65, 1000, 4097])
def test_error_law_over_lengths(T: int) -> None:
    """In as many rows as it takes to compare sizes of errors, of which a token of two heads has two."""
    check_error_law(make_problem(T, shape=(max(1, 128 // T), 2, 64, 64)), has_plain=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("gates", ["none", "zeros", "mild", "strong"])
@pytest.mark.parametrize("rates", ["half", "any", "near two"])
@pytest.mark.parametrize("repeated", [False, True])
def test_error_law_over_gates_and_rates(dtype: torch.dtype, gates: str, rates: str, repeated: bool) -> None:
    check_error_law(make_problem(gates=gates, rates=rates, dtype=dtype, repeated=repeated), has_plain=True)


@pytest.mark.parametrize("rates", ["half", "near two"])
def test_error_law_of_a_key_that_repeats_for_long(rates: str) -> None:
    """What is written beside the key, if anything is, stays there and adds up."""
    check_error_law(make_problem(8000, gates="none", rates=rates, repeated=True), has_plain=True)


@pytest.mark.parametrize("rates", ["half", "none"])
@pytest.mark.parametrize("gates", ["mild", "strong", "resets", "mixed"])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_gates_of_all_kinds_lose_a_few_roundings(gates: str, channels: bool, rates: str, dtype: torch.dtype) -> None:
    check_error_law(make_problem(gates=gates, channels=channels, rates=rates, dtype=dtype), has_plain=False)


@pytest.mark.parametrize(
    ("K", "V"), [(16, 16), (32, 32), (32, 64), (64, 32), (64, 128), (128, 64), (128, 128), (128, 16), (48, 80), (5, 3)]
)
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_error_law_over_widths(K: int, V: int, channels: bool, dtype: torch.dtype) -> None:
    problem = make_problem(shape=(2, 2, K, V), channels=channels, dtype=dtype)
    check_error_law(problem, has_plain=not channels)


def test_packed_sequences_equal_separate_calls() -> None:
    ends = [0, 0, 1, 700, 1000, 3000]
    problem = make_problem(3000, shape=(5, 2, 64, 64))
    problem = replace(problem.row(0), S=problem.S, dS=problem.dS)
    packed = run(problem, "triton", cu_seqlens=torch.tensor(ends, dtype=torch.int32, device="cuda"))
    assert problem.S is not None
    assert problem.dS is not None
    for i, (start, stop) in enumerate(pairwise(ends)):
        if start == stop:
            assert torch.equal(packed["S_out"][i], problem.S[i])
            continue
        alone = replace(problem.tokens(start, stop), S=problem.S[i : i + 1], dS=problem.dS[i : i + 1])
        for name, expected in run(alone, "triton").items():
            found = packed[name][i : i + 1] if "S" in name else packed[name][:, start:stop]
            assert (found - expected).norm() <= 1e-2 * expected.norm(), name


def test_two_runs_give_the_same_bits() -> None:
    problem = make_problem(5000)
    first, second = run(problem, "triton"), run(problem, "triton")
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.parametrize("channels", [False, True])
def test_compiled_gives_what_is_launched(channels: bool) -> None:
    torch.compiler.reset()
    problem = make_problem(3000, channels=channels)
    leaves = [x.requires_grad_() for x in problem.tensors.values()]

    def attend(*tokens: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, S = tokens
        o, after = delta_attention(*inputs, state=S, return_state=True)
        assert after is not None
        return o, after

    results = []
    for function in (attend, torch.compile(attend, fullgraph=True)):
        found = function(*leaves)
        results.append([*found, *torch.autograd.grad(found, leaves, [problem.do, problem.dS])])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_lengths_cause_at_most_two_compilations() -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda q, k, v, g, b: delta_attention(q, k, v, g, b).o, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(recompile_limit=2):
        for T in (100, 1000, 2048, 2049, 10000):
            problem = make_problem(T)
            inputs = (problem.q, problem.k, problem.v, problem.log_g, problem.beta)
            assert torch.equal(compiled(*inputs), delta_attention(*inputs).o)


def test_what_the_kernels_do_not_take_runs_in_chunks() -> None:
    for problem in (make_problem(100, shape=(1, 1, 160, 16)), make_problem(100, shape=(1, 1, 8, 16), p=2)):
        ours, chunked = run(problem), run(problem, "chunked")
        assert all(torch.equal(x, chunked[name]) for name, x in ours.items())


def test_opcheck() -> None:
    problem = make_problem(300)
    leaves = [x.requires_grad_() for x in problem.tensors.values()]
    options = Options(1, 0.5, return_state=True, save_errors=True, use_triton=True)
    torch.library.opcheck(torch.ops.zoo.delta_attention, (*Inputs(*leaves), *options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("gates", "rates"), [("none", "any"), ("mild", "half"), ("strong", "near two"), ("resets", "any")]
)
@pytest.mark.parametrize("width", [32, 64])
def test_on_a_power_state_a_few_roundings_are_lost(width: int, dtype: torch.dtype, gates: str, rates: str) -> None:
    """Of both passes of power attention and of the errors between them."""
    problem = make_problem(1100, gates=gates, rates=rates, dtype=dtype, p=2, shape=(2, 2, width, width))
    check_error_law(problem, has_plain=False)


@pytest.mark.parametrize(
    ("p", "K", "V"), [(2, 16, 128), (2, 64, 64), (2, 64, 128), (2, 128, 64), (2, 128, 16), (3, 16, 32), (4, 16, 16)]
)
def test_power_states_over_widths(p: int, K: int, V: int) -> None:
    check_error_law(make_problem(600, p=p, shape=(1, 2, K, V)), has_plain=False)


@pytest.mark.parametrize(("B", "H"), [(1, 1), (1, 5), (3, 8)])
def test_power_states_of_any_number_of_heads(B: int, H: int) -> None:
    """Which decides how many programs read a state together."""
    check_error_law(make_problem(1100, p=2, shape=(B, H, 64, 64)), has_plain=False)


def test_two_runs_on_a_power_state_give_the_same_bits() -> None:
    problem = make_problem(3000, p=2)
    first = run(problem, "triton")
    for _ in range(5):
        again = run(problem, "triton")
        assert all(torch.equal(x, again[name]) for name, x in first.items())


@pytest.mark.parametrize("given_states", [False, True])
@pytest.mark.parametrize("width", [32, 64])
def test_packed_sequences_on_a_power_state_equal_separate_calls(width: int, given_states: bool) -> None:
    ends = [0, 1, 1300, 1800, 3000]
    problem = make_problem(3000, p=2, shape=(4, 2, width, width))
    problem = replace(problem.row(0), S=problem.S if given_states else None, dS=problem.dS)
    packed = run(problem, "triton", cu_seqlens=torch.tensor(ends, dtype=torch.int32, device="cuda"))
    assert problem.dS is not None
    for i, (start, stop) in enumerate(pairwise(ends)):
        S = None if problem.S is None else problem.S[i : i + 1]
        alone = replace(problem.tokens(start, stop), S=S, dS=problem.dS[i : i + 1])
        for name, expected in run(alone, "triton").items():
            found = packed[name][i : i + 1] if "S" in name else packed[name][:, start:stop]
            assert (found - expected).norm() <= 1e-2 * expected.norm(), name
