"""The delta rule on a power state by Triton kernels, run as Python by the interpreter: stretches of 32 tokens."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings

from zoo.kernels.delta.call import Incoming, Inputs, Options

from ..problems import Problem, attend, check_error_law, check_same, problems, random_problem, run


@pytest.mark.parametrize(("p", "examples"), [(2, 2), (3, 1)])
def test_error_law(p: int, examples: int) -> None:
    thorough = settings().max_examples > 100

    @settings(max_examples=12 * examples if thorough else examples)
    @given(
        problems(
            dtypes=(torch.float32, torch.float16), powers=(p,), widths=(16,), batches=1, most_heads=2, channels=False,
            rates=("half", "any", "near two", "zeros", "ones"), shortest=1, longest=40,
        )
    )  # fmt: skip
    def check(problem: Problem) -> None:
        check_error_law(problem, "triton")

    check()


@pytest.mark.parametrize("gates", ["none", "resets"])
def test_several_stretches(gates: str) -> None:
    problem = random_problem(70, p=2, gates=gates, rates="any", shape=(1, 1, 16, 16))
    check_same(problem, run(problem, "triton"), run(problem, "recurrent"))


def test_without_rates_it_is_power_attention() -> None:
    problem = random_problem(40, p=2, rates="none", shape=(1, 1, 16, 16))
    check_same(problem, run(problem, "triton"), run(problem, "recurrent"))


@pytest.mark.parametrize("given_states", [False, True])
def test_packed_sequences_equal_separate_calls(given_states: bool) -> None:
    """Of no stretch, one, two and three, in no order."""
    ends = [0, 0, 34, 35, 101]
    problem = random_problem(101, p=2, shape=(4, 1, 16, 16))
    problem = replace(problem.row(0), S=problem.S if given_states else None, dS=problem.dS)
    packed = run(problem, "triton", cu_seqlens=torch.tensor(ends, dtype=torch.int32))
    for i, (start, stop) in enumerate(pairwise(ends)):
        S = None if problem.S is None else problem.S[i : i + 1]
        alone = replace(problem.tokens(start, stop), S=S, dS=problem.dS[i : i + 1])
        found = {name: x[i : i + 1] if "S" in name else x[:, start:stop] for name, x in packed.items()}
        check_same(alone, found, run(alone, "chunked"))


def test_shared_heads() -> None:
    problem = random_problem(20, p=2, shape=(1, 2, 16, 32))
    shared = replace(problem, q=problem.q[:, :, :1], k=problem.k[:, :, :1])
    check_same(shared, run(shared, "triton"), run(shared, "recurrent"))


@pytest.mark.parametrize("t", [1, 50])
def test_split_anywhere(t: int) -> None:
    problem = random_problem(70, p=2, shape=(1, 1, 16, 16))
    whole, state = attend(problem, "triton")
    first, between = attend(problem.tokens(0, t), "triton")
    last, after = attend(replace(problem.tokens(t, 70), S=between), "triton")
    torch.testing.assert_close(torch.cat((first, last), 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after, state, rtol=1e-5, atol=1e-5)


def test_opcheck() -> None:
    problem = random_problem(5, p=2, shape=(1, 2, 16, 16))
    tokens = [x.requires_grad_() for x in (problem.q[:, :, :1], problem.k, problem.v, problem.log_g)]
    options = Options(2, 0.5, return_state=True, save_errors=True, use_triton=True)
    inputs = Inputs(*tokens, problem.beta, problem.S)
    torch.library.opcheck(torch.ops.zoo.delta_attention, (*inputs, *options))
    inputs = Inputs(*(None if x is None else x.detach() for x in inputs))
    o, S, *saved = torch.ops.zoo.delta_attention(*inputs, *options)
    incoming = Incoming(torch.ones_like(o), torch.ones_like(S))
    torch.library.opcheck(torch.ops.zoo.delta_attention_backward, (*incoming, *inputs, *saved, *options))


def test_gates_and_rates_may_lie_anywhere() -> None:
    """As transposed ones do, whose tokens are not behind one another."""
    problem = random_problem(40, p=2, rates="any", shape=(1, 2, 16, 16))
    assert problem.log_g is not None
    assert problem.beta is not None
    apart = {"log_g": problem.log_g.mT.contiguous().mT, "beta": problem.beta.mT.contiguous().mT}
    check_same(problem, run(replace(problem, **apart), "triton"), run(problem, "recurrent"))
