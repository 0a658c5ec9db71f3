"""Laws of the delta rule: what must hold between two calls, in results and gradients."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.delta import delta_attention
from zoo.kernels.power import PowerState, power_attention
from zoo.kernels.power.expansion import coefficients, expand
from zoo.kernels.rwkv7 import rwkv7

from .problems import (
    IMPLEMENTATIONS,
    TOKENS,
    Problem,
    Tensors,
    attend,
    check_same,
    differentiate,
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
        o, state = attend(replace(whole.tokens(start, stop), S=state), impl)
        outputs.append(o)
    assert state is not None
    return differentiate(problem, {"o": torch.cat(outputs, 1), "S_out": state}, leaves)


@st.composite
def cut_problems(draw: st.DrawFn) -> tuple[Problem, list[int], list[str]]:
    """A problem, where to cut it (pieces may be empty), and an implementation for each piece."""
    problem = draw(problems())
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
    @given(problems(shortest=1), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        t = data.draw(st.integers(0, problem.T))

        def change(x: Tensor | None) -> Tensor | None:
            return None if x is None else torch.cat((x[:, :t], x[:, t:].flip(1)), 1)

        problem = problem.map(canonical)
        changed = replace(problem, **{name: change(getattr(problem, name)) for name in TOKENS})
        assert torch.equal(attend(changed, impl)[0][:, :t], attend(problem, impl)[0][:, :t])
        if problem.do is None:
            return
        past = torch.cat((problem.do[:, :t], torch.zeros_like(problem.do[:, t:])), 1)
        gradients = run(replace(problem, do=past, dS=None), impl)
        for name in TOKENS:
            assert getattr(problem, name) is None or not gradients[f"d{name}"][:, t:].any(), name

    check()


@every_implementation
def test_linear_in_values_and_state(impl: str) -> None:
    @given(problems(dtypes=[torch.float64]), st.floats(-2, 2))
    def check(problem: Problem, factor: float) -> None:
        other = replace(problem, v=problem.v.flip(-1), S=None if problem.S is None else problem.S.flip(-1))
        S = None if problem.S is None or other.S is None else problem.S + factor * other.S
        both = attend(replace(problem, v=problem.v + factor * other.v, S=S), impl)
        for x, one, two in zip(both, attend(problem, impl), attend(other, impl), strict=True):
            torch.testing.assert_close(x, one + factor * two, rtol=1e-9, atol=1e-9)

    check()


@every_implementation
def test_rows_and_heads_permute(impl: str) -> None:
    @given(problems())
    def check(problem: Problem) -> None:
        def permute(name: str, x: Tensor) -> Tensor:
            return x.flip(0, 1) if name in ("S", "dS", "S_out") else x.flip(0, 2)

        fields = problem.tensors | {n: x for n in ("do", "dS") if (x := getattr(problem, n)) is not None}
        permuted = replace(problem, **{name: permute(name, x) for name, x in fields.items()})
        ours, theirs = run(permuted, impl), run(problem, impl)
        check_same(problem, ours, {name: permute(name, x) for name, x in theirs.items()})

    check()


@every_implementation
def test_repeated_heads_equal_shared_heads(impl: str) -> None:
    @given(problems())
    def check(problem: Problem) -> None:
        heads = problem.v.shape[2]
        leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
        repeated = {
            name: x.repeat_interleave(heads // x.shape[2], 2) if name in ("q", "k") else x for name, x in leaves.items()
        }
        o, S = attend(replace(problem, **repeated), impl)
        check_same(problem, run(problem, impl), differentiate(problem, {"o": o, "S_out": S}, leaves))

    check()


@every_implementation
def test_zero_gates_equal_no_gates(impl: str) -> None:
    @given(problems(gates=["zeros"]))
    def check(problem: Problem) -> None:
        ours = run(problem, impl)
        check_same(problem, ours, run(replace(problem, log_g=None), impl))

    check()


@every_implementation
def test_a_channel_gate_that_is_the_same_in_all_channels_equals_a_head_gate(impl: str) -> None:
    @given(problems(gates=["zeros", "mild", "strong", "resets", "mixed"], channels=False, powers=[1]))
    def check(problem: Problem) -> None:
        assert problem.log_g is not None
        channels = problem.log_g[..., None].expand(*problem.log_g.shape, problem.k.shape[-1])
        ours = run(replace(problem, log_g=channels), impl)
        check_same(problem, ours | {"dlog_g": ours["dlog_g"].sum(-1)}, run(problem, impl))

    check()


@every_implementation
def test_zero_rates_write_nothing(impl: str) -> None:
    @given(problems(rates=["zeros"], state=True))
    def check(problem: Problem) -> None:
        # A plain state that values of zero are added to does nothing but decay.
        theirs = run(replace(problem, beta=None, v=torch.zeros_like(problem.v)), impl)
        ours = run(problem, impl)
        assert not ours["dv"].any()
        check_same(problem, ours, {name: theirs[name] for name in ("o", "S_out", "dS", "dq")})

    check()


@every_implementation
def test_full_rate_recalls_the_value(impl: str) -> None:
    """After a full correction the state holds for the key what was written, whatever it held before."""

    @given(problems(rates=["ones"], dtypes=[torch.float64], shortest=1))
    def check(problem: Problem) -> None:
        repeats = problem.v.shape[2] // problem.k.shape[2]
        problem = replace(problem, q=problem.k, scale=1.0)
        met = (problem.k.norm(dim=-1, keepdim=True) > 0).repeat_interleave(repeats, 2)
        o, _ = attend(problem, impl)
        torch.testing.assert_close(torch.where(met, o, 0), torch.where(met, problem.v, 0), rtol=1e-9, atol=1e-9)

    check()


@every_implementation
def test_infinite_gate_equals_a_fresh_start(impl: str) -> None:
    @given(problems(gates=["mild", "strong", "mixed"], shortest=1), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        assert problem.log_g is not None
        t = data.draw(st.integers(0, problem.T - 1))
        log_g = problem.log_g.clone()
        log_g[:, t] = -torch.inf
        do = None if problem.do is None else problem.do.clone()
        if do is not None:
            do[:, :t] = 0
        reset = replace(problem, log_g=log_g, do=do)
        fresh = replace(reset.tokens(t, problem.T), S=None)
        ours, theirs = run(reset, impl), run(fresh, impl)
        for name in ("dq", "dk", "dv", "dbeta"):
            assert name not in ours or not ours[name][:, :t].any(), f"{name}: a gradient to before the start"
        assert not ours["dlog_g"][:, : t + 1].any()
        if "dS" in ours:
            assert not ours.pop("dS").any()
        check_same(problem, {name: x if name == "S_out" else x[:, t:] for name, x in ours.items()}, theirs)

    check()


@every_implementation
def test_resets_equal_infinite_gates(impl: str) -> None:
    @given(problems(gates=["none", "mild", "mixed"]), st.integers(0, 99))
    def check(problem: Problem, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        resets = torch.rand(problem.q.shape[:2], generator=random) < 0.3
        log_g = problem.log_g
        log_g = torch.zeros(problem.v.shape[:3], dtype=problem.accumulation) if log_g is None else log_g
        marks = resets[..., None] if log_g.dim() == 3 else resets[..., None, None]
        theirs = run(replace(problem, log_g=log_g.masked_fill(marks, -torch.inf)), impl)
        ours = run(problem, impl, resets=resets)
        check_same(problem, ours, {name: theirs[name] for name in ours})

    check()


@st.composite
def packed_problems(draw: st.DrawFn) -> tuple[Problem, list[int]]:
    """A problem of batch 1 and the ends of the sequences in it; states have a row for each sequence."""
    problem = draw(problems(batches=1))
    ends = [0, *sorted(draw(st.lists(st.integers(0, problem.T), max_size=3))), problem.T]
    rows = torch.linspace(1, 2, len(ends) - 1, dtype=torch.float64)[:, None, None, None]

    def states(x: Tensor | None) -> Tensor | None:
        return None if x is None else (x * rows).to(x.dtype)

    return replace(problem, S=states(problem.S), dS=states(problem.dS)), ends


@every_implementation
def test_packed_sequences_equal_separate_calls(impl: str) -> None:
    @given(packed_problems())
    def check(drawn: tuple[Problem, list[int]]) -> None:
        problem, ends = drawn
        ours = run(problem, impl, cu_seqlens=torch.tensor(ends, dtype=torch.int32))
        for i, (start, stop) in enumerate(pairwise(ends)):
            states = {n: x[i : i + 1] for n in ("S", "dS") if (x := getattr(problem, n)) is not None}
            alone = replace(problem.tokens(start, stop), **states)
            part = {n: x[i : i + 1] if n in ("S_out", "dS") else x[:, start:stop] for n, x in ours.items()}
            check_same(alone, part, run(alone, impl))

    check()


@every_implementation
def test_padding_changes_nothing(impl: str) -> None:
    @given(problems(), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        B, T = problem.q.shape[:2]
        lengths = [data.draw(st.integers(0, T)) for _ in range(B)]
        padding = torch.arange(T) >= torch.tensor(lengths)[:, None]

        def fill(x: Tensor | None, value: float) -> Tensor | None:
            return None if x is None else torch.where(padding.view(B, T, *[1] * (x.dim() - 2)), value, x)

        garbage = {name: fill(getattr(problem, name), torch.nan) for name in TOKENS}
        resets = padding if data.draw(st.booleans()) else None
        ours = run(
            replace(problem, **garbage, do=fill(problem.do, 9.0)), impl, lengths=torch.tensor(lengths), resets=resets
        )
        for name, x in ours.items():
            assert name in ("S_out", "dS") or not x[padding].any(), f"{name}: not zero at padding"
        for i, length in enumerate(lengths):
            alone = problem.row(i).tokens(0, length)
            row = {n: x[i : i + 1] if n in ("S_out", "dS") else x[i : i + 1, :length] for n, x in ours.items()}
            check_same(alone, row, run(alone, impl))

    check()


@every_implementation
def test_same_bits_twice_and_inputs_untouched(impl: str) -> None:
    @given(problems(dtypes=[torch.float32, torch.bfloat16]))
    def check(problem: Problem) -> None:
        copy = problem.map(torch.clone)
        first, second = run(problem, impl), run(problem, impl)
        for name in first:
            assert torch.equal(first[name], second[name]), name
        for name, x in copy.tensors.items():
            assert torch.equal(getattr(problem, name).nan_to_num(), x.nan_to_num()), name

    check()


@given(problems())
def test_output_is_the_same_with_and_without_final_state(problem: Problem) -> None:
    options = {"p": problem.p, "scale": problem.scale, "chunk_size": problem.chunk_size}
    tokens = (getattr(problem, name) for name in TOKENS)
    output = delta_attention(*tokens, **options, state=problem.S)
    assert output.state is None
    assert torch.equal(output.o, attend(problem)[0])
    leaf = replace(problem, v=problem.v.detach().requires_grad_())
    assert torch.equal(attend(leaf)[0], attend(problem)[0])


@given(problems(rates=["none"], channels=False))
def test_without_rates_it_is_power_attention(problem: Problem) -> None:
    """Not normalised."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    given = replace(problem, **leaves)
    heads = problem.v.shape[2]
    q, k = (x.repeat_interleave(heads // x.shape[2], 2) for x in (given.q, given.k))
    state = None if given.S is None else PowerState(given.S, torch.zeros_like(given.S[..., 0]))
    o, after = power_attention(
        q, k, given.v, given.log_g, p=problem.p, scale=problem.scale, normalize=False, state=state, return_state=True
    )
    assert after is not None
    check_same(problem, run(problem), differentiate(problem, {"o": o, "S_out": after.S}, leaves))


@given(problems(channels=False, powers=[2, 3], dtypes=[torch.float64]))
def test_a_power_is_the_delta_rule_on_monomials(problem: Problem) -> None:
    """Of keys and queries that are expanded symmetrically, so that their inner product is a power."""
    p, root = problem.p, coefficients(problem.k.shape[-1], problem.p, torch.float64, problem.k.device).sqrt()
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    given = replace(problem, **leaves)
    S = None if given.S is None else given.S * root[:, None]
    expanded = replace(given, q=root * expand(given.q, p), k=root * expand(given.k, p), S=S)
    o, after = attend(replace(expanded, p=1, scale=problem.scale**p))
    check_same(problem, run(problem), differentiate(problem, {"o": o, "S_out": after / root[:, None]}, leaves))


@given(problems(gates=["mild"], channels=True, rates=["half", "any", "ones"], dtypes=[torch.float64]))
def test_dplr_with_shared_vectors_is_the_delta_rule(problem: Problem) -> None:
    """RWKV-7 removes what its removal key holds before the decay, and writes another key at another strength."""
    assert problem.log_g is not None
    assert problem.beta is not None
    heads = problem.v.shape[2]
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    given = replace(problem, **leaves)
    assert given.log_g is not None
    assert given.beta is not None
    q, k = (x.repeat_interleave(heads // x.shape[2], 2) for x in (given.q, given.k))
    width = max(k.shape[-1], given.v.shape[-1])  # RWKV-7's keys and values are equally wide

    def widen(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, width - x.shape[-1]))

    gates, rates = given.log_g.exp(), given.beta[..., None]
    S = None if given.S is None else torch.nn.functional.pad(widen(given.S), (0, 0, 0, width - given.S.shape[2]))
    tokens = (problem.scale * q, given.log_g, rates * k, given.v, gates * k, rates / gates)
    o, after = rwkv7(*(widen(x) for x in tokens), state=S, return_state=True)
    assert after is not None
    results = {"o": o[..., : problem.v.shape[-1]], "S_out": after[..., : k.shape[-1], : problem.v.shape[-1]]}
    check_same(problem, run(problem), differentiate(problem, results, leaves))
