"""Decoding beside a journal: the same as the whole sequence, wherever rows are and whenever tokens are folded."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.errors import InputError
from zoo.kernels.power import (
    Heads,
    PowerJournalState,
    absorb,
    fold_size,
    init_power_state,
    journal_step,
    open_journal,
    power_journal_step,
    worthwhile,
)

from .error_law import check_same, check_steps, vanishes
from .problems import GATES, Problem, Tensors, attend, problems


@st.composite
def journals(draw: st.DrawFn, problem: Problem) -> tuple[PowerJournalState, Tensor, int]:
    """A state before a problem's first token, how far each row is, and how many tokens enter the sums at a time.

    Sums that the problem brings along are over tokens that are long gone.
    """
    B, K, V = problem.q.shape[0], problem.q.shape[-1], problem.v.shape[-1]
    fold = draw(st.integers(1, 7))
    state = open_journal(
        init_power_state(
            B, problem.heads.state, K, V, problem.p, offset=problem.offset is not None, dtype=problem.accumulation
        ),
        problem.heads, K, fold + draw(st.integers(1, 5)), problem.q.dtype,
    )  # fmt: skip
    if problem.S is not None and problem.z is not None:
        position = torch.tensor([draw(st.integers(1, 100)) for _ in range(B)])
        state.S.copy_(problem.S)
        state.z.copy_(problem.z)
    else:
        position = torch.zeros(B, dtype=torch.int64)
    state.folded.copy_(position)
    state.gates.fill_(draw(st.sampled_from([0.0, -9e6])))
    return state, position, fold


def step_through(problem: Problem, state: PowerJournalState, position: Tensor, fold: int) -> Tensors:
    """Outputs and what the state has summed up at the end; `state` and `position` are written in place."""
    outputs = [problem.v.new_empty(len(problem.q), 0, problem.heads.output, problem.v.shape[-1])]
    for t in range(problem.q.shape[1]):
        q, k, v, log_g = (None if x is None else x[:, t] for x in (problem.q, problem.k, problem.v, problem.log_g))
        options = {**problem.step_options, "fold": fold}
        outputs.append(power_journal_step(q, k, v, log_g, state=state, position=position, **options)[:, None])
        position += 1
        assert (position - state.folded < state.slots - 1).all()  # there is room for the next one
    S, z = absorb(state, position, state.slots - 1, p=problem.p)
    return {"o": torch.cat(outputs, 1), "S_out": S, "z_out": z}


def whole(problem: Problem) -> Tensors:
    o, state = attend(problem)
    return {"o": o, "S_out": state.S, "z_out": state.z}


@pytest.mark.parametrize("looks", [True, False])  # a device that must not wait folds one token at a time
def test_steps_are_the_whole_sequence(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_step, "_can_look", lambda _: looks)

    @given(problems(shortest=1), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        assume(not vanishes(problem))
        problem = replace(problem, do=None, dS=None, dz=None)
        state, position, fold = data.draw(journals(problem))
        addresses = [x.data_ptr() for x in state]
        ours = step_through(problem, state, position, fold)
        assert [x.data_ptr() for x in state] == addresses
        check_same(problem, ours, whole(problem))

    check()


@given(problems(dtypes=(torch.float32,), shortest=1), st.data())
def test_error_law(problem: Problem, data: st.DataObject) -> None:
    assume(not vanishes(problem))
    problem = replace(problem, do=None, dS=None, dz=None)
    check_steps(problem, step_through(problem, *data.draw(journals(problem))))


@settings(max_examples=25)
@given(problems(dtypes=(torch.bfloat16, torch.float16), gates=["none", "mild", "resets"], shortest=1), st.data())
def test_narrow_inputs_are_wide_ones_rounded_once(problem: Problem, data: st.DataObject) -> None:
    problem = replace(problem, do=None, dS=None, dz=None)
    wide = problem.map(torch.Tensor.float)
    state, position, fold = data.draw(journals(problem))
    other = PowerJournalState(*(x.float() if x.dtype == problem.q.dtype else x.clone() for x in state))
    ours, theirs = step_through(problem, state, position.clone(), fold), step_through(wide, other, position, fold)
    assert ours["o"].dtype == problem.v.dtype
    assert torch.equal(ours["o"], theirs["o"].to(problem.v.dtype))


@settings(max_examples=25)
@given(problems(dtypes=(torch.float64,), gates=GATES, shortest=2), st.data())
def test_what_is_apart_can_be_taken_back(problem: Problem, data: st.DataObject) -> None:
    """A step back in position, as long as the tokens are apart, is as if they had never been."""
    assume(not vanishes(problem))
    problem = replace(problem, do=None, dS=None, dz=None)
    state, position, fold = data.draw(journals(problem))
    step_through(problem.tokens(0, problem.q.shape[1] // 2), state, position, fold)
    kept = PowerJournalState(*(x.clone() for x in state)), position.clone()
    other = problem.tokens(problem.q.shape[1] // 2, problem.q.shape[1])
    room = state.slots - 2 - int((position - state.folded).max())
    count = min(room, other.q.shape[1])
    wrong = other.tokens(0, count).map(lambda x: x if x.dim() < 3 else x.flip(1))  # sums and offsets are no tokens
    step_through(replace(wrong, S=None, z=None), state, position, fold)
    position -= count
    assume(torch.equal(state.folded, kept[0].folded))
    again, fresh = step_through(other, state, position, fold), step_through(other, *kept, fold)
    for name, x in again.items():
        assert torch.equal(x, fresh[name]), name


@pytest.mark.parametrize(("p", "K"), [(2, 64), (4, 16)])
def test_a_query_that_sees_one_token_gives_its_value(p: int, K: int) -> None:
    """Its weight cancels, and not its rounding: of many queries some are nearly orthogonal to their key."""
    q, k, v = torch.randn(3, 500, 2, 1, K, generator=torch.Generator().manual_seed(p)).unbind()
    state = open_journal(init_power_state(500, 1, K, K, p), Heads(1, 1, 1), K, 90, torch.float32)
    k[:, 1] = 0  # so that the second query sees the first token alone
    for t in range(2):
        position = torch.full((500,), t)
        o = power_journal_step(q[:, t], k[:, t], v[:, t], state=state, position=position, p=p)
        torch.testing.assert_close(o, v[:, 0], rtol=2e-6, atol=2e-6)


def test_a_journal_is_as_long_as_costs_least() -> None:
    assert [fold_size(rows) for rows in (1, 64, 528, 2080, 8256, 45760)] == [16, 16, 32, 64, 128, 256]
    sums = init_power_state(3, 12, 64, 64, 2, device="meta")
    assert worthwhile(sums, Heads(12, 12, 12), 64, torch.bfloat16) == 2080 * 65 * 4 // (2 * 128 + 8)
    assert worthwhile(sums, Heads(12, 1, 12), 64, torch.float32) == 12 * 2080 * 65 * 4 // (4 * 13 * 64 + 12 * 8)


def test_bad_arguments_are_named() -> None:
    q, k, v = (torch.zeros(2, 1, 4) for _ in range(3))
    good = open_journal(init_power_state(2, 1, 4, 4, 2), Heads(1, 1, 1), 4, 20, torch.float32)
    at = torch.zeros(2, dtype=torch.int64)
    for changes, message in (
        ({"keys": good.keys[..., :3]}, r"state\.keys: expected \[2, 20, 1, 4\], was \[2, 20, 1, 3\]"),
        ({"values": good.values.double()}, r"state\.values: expected torch\.float32, was torch\.float64"),
        ({"keys": good.keys.int()}, r"state\.keys: expected a floating dtype, was torch\.int32"),
        ({"gates": good.gates.float()}, r"state\.gates: expected torch\.float64, was torch\.float32"),
        ({"folded": good.folded.to("meta")}, r"state\.folded: expected on cpu as q is, was on meta"),
        ({"S": good.S[:, :, 1:]}, r"state\.S: expected \[2, 1, 10, 4\] for batch 2"),
    ):
        with pytest.raises(InputError, match=message):
            power_journal_step(q, k, v, state=good._replace(**changes), position=at)
    with pytest.raises(InputError, match=r"position: expected \[2\], was \[1\]"):
        power_journal_step(q, k, v, state=good, position=at[:1])
    with pytest.raises(InputError, match="fold: expected from 1 to 19, fewer than the 20 slots of the journal, was 20"):
        power_journal_step(q, k, v, state=good, position=at, fold=20)
