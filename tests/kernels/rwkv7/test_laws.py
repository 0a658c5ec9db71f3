"""Laws of RWKV-7's time mixing: what must hold between two calls, in results and gradients."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from .problems import (
    IMPLEMENTATIONS,
    TOKENS,
    Problem,
    Tensors,
    check_same,
    differentiate,
    mix,
    problems,
    run,
)

every_implementation = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


def run_in_pieces(problem: Problem, ends: Sequence[int], impls: Sequence[str]) -> Tensors:
    """`run`, with the sequence cut at `ends` and the state passed from piece to piece."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    whole, outputs = replace(problem, **leaves), []
    state = whole.S
    for (start, stop), impl in zip(pairwise(ends), impls, strict=True):
        o, state = mix(replace(whole.tokens(start, stop), S=state), impl)
        outputs.append(o)
    assert state is not None
    return differentiate(problem, {"o": torch.cat(outputs, 1), "S_out": state}, leaves)


@st.composite
def cut_problems(draw: st.DrawFn) -> tuple[Problem, list[int], list[str]]:
    """A problem, where to cut it (pieces may be empty), and an implementation for each piece."""
    problem = draw(problems(lengths=False))
    ends = [0, *sorted(draw(st.lists(st.integers(0, problem.T), max_size=3))), problem.T]
    return problem, ends, [draw(st.sampled_from(IMPLEMENTATIONS)) for _ in ends[1:]]


@given(cut_problems())
def test_split_anywhere(drawn: tuple[Problem, list[int], list[str]]) -> None:
    problem, ends, impls = drawn
    check_same(problem, run_in_pieces(problem, ends, impls), run(problem, impls[0]))


@given(problems(), st.data())
def test_chunk_size_changes_rounding_only(problem: Problem, data: st.DataObject) -> None:
    other = data.draw(st.none() | st.integers(1, problem.T + 3))
    check_same(problem, run(problem, "chunked", chunk_size=other), run(problem, "chunked"))


def canonical(x: Tensor) -> Tensor:
    """A copy in plain layout: bits may depend on strides, by which matrix products choose their order of summing."""
    return x.clone(memory_format=torch.contiguous_format)


@every_implementation
def test_future_changes_nothing(impl: str) -> None:
    @given(problems(shortest=1, lengths=False, resets=False), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        t = data.draw(st.integers(0, problem.T))
        problem = problem.map(canonical)
        changed = {name: torch.cat((x[:, :t], x[:, t:].flip(1) * 2), 1) for name, x in problem.tensors.items()}
        changed = {name: x for name, x in changed.items() if name != "S"}
        assert torch.equal(mix(replace(problem, **changed), impl)[0][:, :t], mix(problem, impl)[0][:, :t])
        if problem.do is None:
            return
        past = torch.cat((problem.do[:, :t], torch.zeros_like(problem.do[:, t:])), 1)
        gradients = run(replace(problem, do=past, dS=None), impl)
        for name in TOKENS:
            assert not gradients[f"d{name}"][:, t:].any(), name

    check()


@every_implementation
def test_reset_equals_a_fresh_start(impl: str) -> None:
    @given(problems(shortest=1, resets=False, lengths=False), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        t = data.draw(st.integers(0, problem.T - 1))
        resets = torch.zeros(problem.r.shape[:2], dtype=torch.bool)
        resets[:, t] = True
        do = problem.do
        if do is not None:
            do = torch.cat((torch.zeros_like(do[:, :t]), do[:, t:]), 1)
        reset = replace(problem, resets=resets, do=do)
        fresh = replace(problem.tokens(t, problem.T), S=None)
        ours, theirs = run(reset, impl), run(fresh, impl)
        # The first token of a fresh start has nothing to decay or to remove; its gradients there are zero.
        for name in TOKENS:
            assert not ours[f"d{name}"][:, :t].any(), f"{name}: a gradient to before the start"
        for name in ("log_w", "kappa", "a"):
            assert not ours[f"d{name}"][:, t].any(), f"{name}: a gradient through the start"
        if "dS" in ours:
            assert not ours.pop("dS").any()
        check_same(problem, {name: x if name == "S_out" else x[:, t:] for name, x in ours.items()}, theirs)

    check()


@every_implementation
def test_padding_is_left_out(impl: str) -> None:
    @given(problems(lengths=True))
    def check(problem: Problem) -> None:
        assert problem.lengths is not None
        past_end = torch.arange(problem.T) >= problem.lengths[:, None]

        def poison(x: Tensor) -> Tensor:
            return x.masked_fill(past_end[..., None, None], torch.nan)

        poisoned = replace(problem, **{name: poison(getattr(problem, name)) for name in TOKENS})
        ours = run(poisoned, impl)
        for i, length in enumerate(problem.lengths.tolist()):
            alone = replace(problem.row(i).tokens(0, length), lengths=None)
            by_row = {name: x[i : i + 1] for name, x in ours.items()}
            for name, x in by_row.items():
                assert name in ("S_out", "dS") or not x[:, length:].any(), name
            cut = {name: x if name in ("S_out", "dS") else x[:, :length] for name, x in by_row.items()}
            check_same(alone, cut, run(alone, impl))

    check()


@every_implementation
def test_linear_in_values_and_state(impl: str) -> None:
    @given(problems(dtypes=[torch.float64]), st.floats(-2, 2))
    def check(problem: Problem, factor: float) -> None:
        other = replace(problem, v=problem.v.flip(-1), S=None if problem.S is None else problem.S.flip(-1))
        S = None if problem.S is None or other.S is None else problem.S + factor * other.S
        both = mix(replace(problem, v=problem.v + factor * other.v, S=S), impl)
        for x, one, two in zip(both, mix(problem, impl), mix(other, impl), strict=True):
            torch.testing.assert_close(x, one + factor * two, rtol=1e-10, atol=1e-10)

    check()


@every_implementation
def test_rows_and_heads_permute(impl: str) -> None:
    @given(problems())
    def check(problem: Problem) -> None:
        def permute(name: str, x: Tensor) -> Tensor:
            return x.flip(0, 1) if name in ("S", "dS", "S_out") else x.flip(0, 2)

        fields = problem.tensors | {n: x for n in ("do", "dS") if (x := getattr(problem, n)) is not None}
        rows = {n: x.flip(0) for n in ("resets", "lengths") if (x := getattr(problem, n)) is not None}
        permuted = replace(problem, **{name: permute(name, x) for name, x in fields.items()}, **rows)
        ours, theirs = run(permuted, impl), run(problem, impl)
        check_same(problem, ours, {name: permute(name, x) for name, x in theirs.items()})

    check()


@given(problems(decays=["none"], state=True, dtypes=[torch.float64], shortest=1, resets=False, lengths=False))
def test_full_rate_forgets_the_removal_key(problem: Problem) -> None:
    """Without decay and at a = 1 nothing is left of what the state held for kappa, but for what k adds."""
    problem = replace(problem, a=torch.ones_like(problem.a), k=torch.zeros_like(problem.k), r=problem.kappa)
    o, _ = mix(problem)
    torch.testing.assert_close(o, torch.zeros_like(o), rtol=0, atol=1e-10)


@given(problems(dtypes=[torch.float32, torch.bfloat16]))
def test_same_bits_twice_and_inputs_untouched(problem: Problem) -> None:
    copy = problem.map(torch.clone)
    first, second = run(problem), run(problem)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    for name, x in copy.tensors.items():
        assert torch.equal(getattr(problem, name), x), name


@given(problems())
def test_output_is_the_same_with_and_without_final_state(problem: Problem) -> None:
    leaf = replace(problem, v=problem.v.detach().requires_grad_())
    assert torch.equal(mix(leaf)[0], mix(problem)[0])
