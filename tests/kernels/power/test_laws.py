"""Laws of power attention: what must hold between two calls, for every implementation, in results and gradients."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.power import PowerState, power_attention

from .error_law import check_same, vanishes
from .problems import IMPLEMENTATIONS, Problem, Tensors, attend, differentiate, make_state, problems, run

every_implementation = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


def run_in_pieces(problem: Problem, ends: Sequence[int], impls: Sequence[str]) -> Tensors:
    """`run`, with the sequence cut at `ends` and the state passed from piece to piece."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    whole, outputs = replace(problem, **leaves), []
    state = whole.state
    for (start, stop), impl in zip(pairwise(ends), impls, strict=True):
        S, z = state or (None, None)
        o, state = attend(replace(whole.tokens(start, stop), S=S, z=z), impl)
        outputs.append(o)
    assert state is not None
    results = {"o": torch.cat(outputs, 1), "S_out": state.S, "z_out": state.z}
    gradients = differentiate(results, leaves, problem.gradients)
    return {name: x.detach() for name, x in results.items()} | gradients


@st.composite
def cut_problems(draw: st.DrawFn) -> tuple[Problem, list[int], list[str]]:
    """A problem, where to cut it (pieces may be empty), and an implementation for each piece."""
    problem = draw(problems())
    T = problem.q.shape[1]
    ends = [0, *sorted(draw(st.lists(st.integers(0, T), max_size=4))), T]
    return problem, ends, [draw(st.sampled_from(IMPLEMENTATIONS)) for _ in ends[1:]]


@given(cut_problems())
def test_split_anywhere(drawn: tuple[Problem, list[int], list[str]]) -> None:
    problem, ends, impls = drawn
    assume(not vanishes(problem))
    check_same(problem, run_in_pieces(problem, ends, impls), run(problem, impls[0]))


def canonical(x: Tensor) -> Tensor:
    """A copy in plain layout: bits may depend on strides, by which matrix products choose their order of summing."""
    return x.clone(memory_format=torch.contiguous_format)


@every_implementation
def test_future_changes_nothing(impl: str) -> None:
    @given(problems(shortest=1), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        t = data.draw(st.integers(0, problem.q.shape[1]))

        def change(x: Tensor | None) -> Tensor | None:
            return None if x is None else torch.cat((x[:, :t], x[:, t:].flip(1) * 2), 1)

        problem = problem.map(canonical)
        changed = replace(problem, **{name: change(getattr(problem, name)) for name in ("q", "k", "v", "log_g")})
        assert torch.equal(attend(changed, impl)[0][:, :t], attend(problem, impl)[0][:, :t])
        if problem.do is None:
            return
        past = torch.cat((problem.do[:, :t], torch.zeros_like(problem.do[:, t:])), 1)
        gradients = run(replace(problem, do=past, dS=None, dz=None), impl)
        for name in ("dq", "dk", "dv", "dlog_g"):
            assert name not in gradients or not gradients[name][:, t:].any(), name

    check()


@every_implementation
def test_linear_in_values(impl: str) -> None:
    @given(problems(), st.floats(-2, 2), st.integers(0, 99))
    def check(problem: Problem, factor: float, seed: int) -> None:
        assume(not vanishes(problem))
        random = torch.Generator().manual_seed(seed)

        def other(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=random, dtype=torch.float64).to(x.dtype)

        second = replace(problem, v=other(problem.v), S=None if problem.S is None else other(problem.S))
        S = None if problem.S is None else problem.S + factor * second.S
        both = replace(problem, v=problem.v + factor * second.v, S=S)
        ours, one, two = (run(x, impl) for x in (both, problem, second))
        sums = {name: one[name] + factor * two[name] for name in ("o", "S_out")}
        # Bounds that hold for both parts: the sizes of their values add up.
        S = None if problem.S is None else problem.S.abs() + abs(factor) * second.S.abs()
        largest = replace(problem, v=problem.v.abs() + abs(factor) * second.v.abs(), S=S)
        check_same(largest, ours | sums, ours)

    check()


@every_implementation
def test_heads_and_batch_permute(impl: str) -> None:
    @given(problems(), st.randoms(use_true_random=False))
    def check(problem: Problem, random: Any) -> None:
        assume(not vanishes(problem))
        q, k, v = problem.heads
        groups = next(n for n in range(min(q, k, v), 0, -1) if q % n == k % n == v % n == 0)
        rows, order = list(range(problem.q.shape[0])), list(range(groups))
        random.shuffle(rows)
        random.shuffle(order)

        def permute(x: Tensor, dim: int) -> Tensor:
            blocks = x[rows].unflatten(dim, (groups, -1))
            return blocks.index_select(dim, torch.tensor(order)).flatten(dim, dim + 1)

        def permute_offsets(x: Tensor) -> Tensor:
            return x.unflatten(0, (groups, -1))[order].flatten()

        def permute_all(tensors: Tensors) -> Tensors:
            by_state = ("S", "z", "dS", "dz", "S_out", "z_out")
            return {
                name: permute_offsets(x) if "offset" in name else permute(x, 1 if name in by_state else 2)
                for name, x in tensors.items()
            }

        fields = {name: x for name in ("do", "dS", "dz") if (x := getattr(problem, name)) is not None}
        permuted = replace(problem, **permute_all(problem.tensors | fields))
        check_same(permuted, run(permuted, impl), permute_all(run(problem, impl)))

    check()


@every_implementation
def test_repeated_heads_equal_shared_heads(impl: str) -> None:
    @given(problems())
    def check(problem: Problem) -> None:
        assume(not vanishes(problem))
        heads = problem.heads
        counts = {"q": heads.output, "k": heads.state, "v": heads.state, "log_g": heads.state}
        leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
        repeated = {
            name: x.repeat_interleave(counts[name] // x.shape[2], 2) if name in counts else x
            for name, x in leaves.items()
        }
        if "offset" in leaves:
            repeated["offset"] = leaves["offset"].repeat_interleave(heads.output // heads.query)
        o, state = attend(replace(problem, **repeated), impl)
        results = {"o": o, "S_out": state.S, "z_out": state.z}
        theirs = {name: x.detach() for name, x in results.items()}
        check_same(problem, run(problem, impl), theirs | differentiate(results, leaves, problem.gradients))

    check()


@every_implementation
def test_key_length_is_free_when_normalized(impl: str) -> None:
    @given(problems(normalize=True, offset=False), st.sampled_from([0.25, 2.0, -1.0, 1.7]))
    def check(problem: Problem, factor: float) -> None:
        assume(not vanishes(problem))
        power = factor**problem.p
        S, z = (None, None) if problem.state is None else (problem.S * power, problem.z * power)
        scaled = replace(problem, k=problem.k * factor, S=S, z=z, dS=None, dz=None)
        problem = replace(problem, dS=None, dz=None)
        ours, theirs = run(scaled, impl), run(problem, impl)
        ours["dk"] = ours["dk"] * factor
        for name in ("S_out", "z_out"):
            ours[name] = ours[name] / power
        for name in {"dS", "dz"} & ours.keys():
            ours[name] = ours[name] * power
        check_same(problem, ours, theirs)

    check()


@every_implementation
def test_power_of_two_on_keys_is_exact_when_normalized(impl: str) -> None:
    @given(problems(normalize=True, dtypes=[torch.float32], state=False, gates=["none", "mild"], offset=False))
    def check(problem: Problem) -> None:
        assume(problem.p == 2)
        problem = problem.map(canonical)
        o, _ = attend(problem, impl)
        scaled, _ = attend(replace(problem, k=problem.k * 8), impl)
        assert torch.equal(scaled, o)

    check()


@every_implementation
def test_zero_gates_equal_no_gates(impl: str) -> None:
    @given(problems(gates=["zeros"]))
    def check(problem: Problem) -> None:
        assume(not vanishes(problem))
        theirs = run(replace(problem, log_g=None), impl)
        ours = run(problem, impl)
        check_same(problem, ours, theirs | {"dlog_g": ours["dlog_g"]})

    check()


@every_implementation
def test_infinite_gate_equals_a_fresh_start(impl: str) -> None:
    @given(problems(gates=["mild", "strong", "mixed"], shortest=1), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        assert problem.log_g is not None
        t = data.draw(st.integers(0, problem.q.shape[1] - 1))
        log_g = problem.log_g.clone()
        log_g[:, t] = -torch.inf
        do = None if problem.do is None else problem.do.clone()
        if do is not None:
            do[:, :t] = 0
        reset = replace(problem, log_g=log_g, do=do)
        fresh = replace(reset.tokens(t, problem.q.shape[1]), S=None, z=None)
        assume(not vanishes(fresh))
        ours, theirs = run(reset, impl), run(fresh, impl)
        for name in ("dq", "dk", "dv"):
            assert not ours[name][:, :t].any(), f"{name}: a gradient to before the start"
        # The quadratic form sums gates over the whole sequence, so autograd leaves a float64 rounding error there.
        noise = 1e-12 if impl == "quadratic" else 0
        assert (ours["dlog_g"][:, : t + 1].abs() <= noise).all()
        for name in {"dS", "dz"} & ours.keys():
            assert not ours.pop(name).any(), f"{name}: a gradient to before the start"
        whole = ("S_out", "z_out", "doffset")
        at_tokens = {name: x if name in whole else x[:, t:] for name, x in ours.items()}
        check_same(fresh, at_tokens, theirs)

    check()


@st.composite
def packed_problems(draw: st.DrawFn) -> tuple[Problem, list[int]]:
    """A problem of batch 1 and the ends of the sequences in it; states have a row for each sequence."""
    problem = draw(problems(batches=1))
    T, K, V = problem.q.shape[1], problem.q.shape[-1], problem.v.shape[-1]
    ends = [0, *sorted(draw(st.lists(st.integers(0, T), max_size=3))), T]
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def states() -> list[Tensor]:
        has_offset = problem.offset is not None
        pair = make_state(len(ends) - 1, problem.heads.state, K, V, problem.p, 3, random, offset=has_offset)
        return [x.to(problem.accumulation) for x in pair]

    S, z = states() if problem.S is not None else (None, None)
    dS, dz = states()
    dS, dz = (None if problem.dS is None else dS), (None if problem.dz is None else dz)
    return replace(problem, S=S, z=z, dS=dS, dz=dz), ends


def part_of(results: Tensors, row: int, tokens: slice) -> Tensors:
    """Results and gradients of one sequence: its row of the states, its tokens of the rest."""
    by_state = ("S_out", "z_out", "dS", "dz")
    results = without_offset(results)
    return {name: x[row : row + 1] if name in by_state else x[:, tokens] for name, x in results.items()}


@every_implementation
def test_packed_sequences_equal_separate_calls(impl: str) -> None:
    @given(packed_problems())
    def check(drawn: tuple[Problem, list[int]]) -> None:
        problem, ends = drawn
        ours = run(problem, impl, cu_seqlens=torch.tensor(ends, dtype=torch.int32))
        for i, (start, stop) in enumerate(pairwise(ends)):
            states = {n: x[i : i + 1] for n in ("S", "z", "dS", "dz") if (x := getattr(problem, n)) is not None}
            alone = replace(problem.tokens(start, stop), **states)
            if not vanishes(alone):
                check_same(alone, part_of(ours, i, slice(start, stop)), without_offset(run(alone, impl)))

    check()


def without_offset(results: Tensors) -> Tensors:
    """Results and gradients without that of offsets, which belongs to all sequences together."""
    return {name: x for name, x in results.items() if name != "doffset"}


@every_implementation
def test_sequences_add_up_to_the_gradient_of_their_offset(impl: str) -> None:
    @given(packed_problems())
    def check(drawn: tuple[Problem, list[int]]) -> None:
        problem, ends = drawn
        assume(problem.offset is not None)
        problem = replace(problem.double(), dS=None, dz=None)
        ours = run(problem, impl, cu_seqlens=torch.tensor(ends, dtype=torch.int32))
        total = torch.zeros_like(ours["doffset"])
        for i, (start, stop) in enumerate(pairwise(ends)):
            states = {n: x[i : i + 1] for n in ("S", "z") if (x := getattr(problem, n)) is not None}
            alone = replace(problem.tokens(start, stop), **states)
            assume(not vanishes(alone))
            total += run(alone, impl)["doffset"]
        torch.testing.assert_close(ours["doffset"], total, rtol=1e-9, atol=1e-9)

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

        garbage = {name: fill(getattr(problem, name), torch.nan) for name in ("q", "k", "v", "log_g")}
        ours = run(replace(problem, **garbage, do=fill(problem.do, 9.0)), impl, lengths=torch.tensor(lengths))
        for name in {"o", "dq", "dk", "dv", "dlog_g"} & ours.keys():
            assert not ours[name][padding].any(), f"{name}: not zero at padding"
        for i, length in enumerate(lengths):
            alone = problem.row(i).tokens(0, length)
            if not vanishes(alone):
                row = {name: x[i : i + 1] if name in ("S_out", "z_out", "dS", "dz") else x[i : i + 1, :length]
                       for name, x in without_offset(ours).items()}  # fmt: skip
                check_same(alone, row, without_offset(run(alone, impl)))

    check()


@given(problems(), st.data())
def test_chunk_size_changes_rounding_only(problem: Problem, data: st.DataObject) -> None:
    assume(not vanishes(problem))
    other = data.draw(st.none() | st.integers(1, problem.q.shape[1] + 3))
    check_same(problem, run(problem, "chunked", chunk_size=other), run(problem, "chunked"))


@every_implementation
def test_same_bits_twice_and_inputs_untouched(impl: str) -> None:
    @given(problems(dtypes=[torch.float32, torch.bfloat16]))
    def check(problem: Problem) -> None:
        copy = problem.map(torch.clone)
        first, second = run(problem, impl), run(problem, impl)
        for name in first:
            assert torch.equal(first[name].nan_to_num(), second[name].nan_to_num()), name
        for name, x in copy.tensors.items():
            assert torch.equal(getattr(problem, name).nan_to_num(), x.nan_to_num()), name

    check()


@every_implementation
def test_output_is_the_same_with_and_without_final_state(impl: str) -> None:
    @given(problems())
    def check(problem: Problem) -> None:
        output = power_attention(
            problem.q, problem.k, problem.v, problem.log_g, **problem.options, state=problem.state, impl=impl
        )
        assert output.state is None
        torch.testing.assert_close(output.o, attend(problem, impl)[0])

    check()


@every_implementation
def test_key_length_is_free_to_the_end_of_the_range(impl: str) -> None:
    """Weights of 2^-126 and less have fewer digits, and gradients end where an inverse weight leaves the range."""

    @given(
        problems(
            normalize=True, dtypes=[torch.float32], state=False, gates=["none", "mild"], powers=(2, 4), offset=False
        )
    )
    def check(problem: Problem) -> None:
        # Every token sees itself, with a score of at least 1.
        problem = replace(problem, q=torch.ones_like(problem.q), k=problem.k.abs() + 1, scale=1.0)
        expected = run(problem, impl)
        for exponent, names in ((104, {"o", "dq", "dv"}), (124, {"o"})):
            factor = 2.0 ** (-exponent / problem.p)
            found = run(replace(problem, q=problem.q * factor), impl)
            found["dq"] *= factor
            for name in names:
                torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)

    check()


def test_long_decays_do_not_zero_what_is_left() -> None:
    q, k, v = torch.ones(3, 1, 3, 1, 8).unbind()
    k = k * torch.tensor([1.0, 0, 0])[None, :, None, None]
    v = torch.randn_like(v)
    for impl in IMPLEMENTATIONS:
        o, _ = power_attention(q, k, v, torch.full((1, 3, 1), -42.0), impl=impl)
        torch.testing.assert_close(o, v[:, :1].expand_as(o))


@every_implementation
def test_no_keys_give_zeros_and_finite_gradients(impl: str) -> None:
    @given(problems(state=False, offset=False), st.booleans())
    def check(problem: Problem, orthogonal: bool) -> None:
        K = problem.k.shape[-1]
        first_half, second_half = torch.arange(K) < K // 2, torch.arange(K) >= K // 2
        # Zero keys, or keys that no query meets: their denominators are zero although keys are not.
        k = torch.where(first_half, problem.k, 0) if orthogonal else torch.zeros_like(problem.k)
        q = torch.where(second_half, problem.q, 0) if orthogonal else problem.q
        results = run(replace(problem, q=q, k=k), impl)
        assert not results["o"].any()
        for name, x in results.items():
            assert x.isfinite().all(), name

    check()


def test_gradients_stay_finite_where_a_denominator_cancels() -> None:
    """The numerator over the squared denominator, which the gradient is made of, is beyond float32's range."""
    q, k, v = torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 3)
    state = PowerState(torch.ones(1, 1, 3, 3), torch.full((1, 1, 3), 1e-25))
    q.requires_grad_()
    o, _ = power_attention(q, k, v, state=state, impl="chunked")
    (dq,) = torch.autograd.grad(o.sum(), q)
    assert dq.isfinite().all()


@every_implementation
def test_vanishing_denominators_stay_finite(impl: str) -> None:
    """A state that strong gates have decayed to the edge of float32's range, and no keys since."""

    @given(
        problems(
            normalize=True, dtypes=[torch.float32], state=True, gates=["strong"], shortest=1, longest=6, offset=False
        )
    )
    def check(problem: Problem) -> None:
        results = run(replace(problem, k=torch.zeros_like(problem.k)), impl)
        for name, x in results.items():
            assert x.isfinite().all(), name

    check()


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("gate", [-5.0, -50.0, 0.0])
def test_gradients_of_gates_err_as_autograd_does(gate: float, p: int) -> None:
    """Where a gate forgets nearly everything its gradient is small, and not what rounding leaves of larger ones."""
    torch.manual_seed(0)
    q, k, v, do = torch.randn(4, 1, 100, 2, 16).unbind()
    log_g = torch.full((1, 100, 2), gate)
    if gate == 0.0:
        log_g[:, ::9] = -30.0
    found = []
    for impl, dtype in (("recurrent", torch.float64), ("quadratic", torch.float32), ("chunked", torch.float32)):
        gates = log_g.to(dtype).requires_grad_()
        chunk_size = 32 if impl == "chunked" else None
        o, _ = power_attention(*(x.to(dtype) for x in (q, k, v)), gates, p=p, impl=impl, chunk_size=chunk_size)
        found.append(torch.autograd.grad(o, gates, do.to(dtype))[0].double())
    exact, plain, ours = found
    assert (ours - exact).norm() <= 4 * (plain - exact).norm() + 1e-7 * exact.norm()
