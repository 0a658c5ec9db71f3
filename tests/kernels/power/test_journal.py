"""Decoding beside a journal: the same as the whole sequence, wherever rows are and whenever tokens are folded."""

from dataclasses import replace
from typing import Any

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
    due,
    fold_size,
    init_power_state,
    journal_read,
    journal_step,
    open_journal,
    power_attention,
    power_journal_attention,
    power_journal_step,
    worthwhile,
)

from .error_law import check_same, check_steps, vanishes
from .problems import GATES, Problem, Tensors, attend, problems

Schedule = dict[str, int]  # `fold` and `keep`


@st.composite
def journals(draw: st.DrawFn, problem: Problem) -> tuple[PowerJournalState, Tensor, Schedule]:
    """A state before a problem's first token, how far each row is, and when tokens enter the sums.

    Sums that the problem brings along are over tokens that are long gone.
    """
    B, K, V = problem.q.shape[0], problem.q.shape[-1], problem.v.shape[-1]
    fold, keep = draw(st.integers(1, 7)), draw(st.integers(0, 3))
    state = open_journal(
        init_power_state(
            B, problem.heads.state, K, V, problem.p, offset=problem.offset is not None, dtype=problem.accumulation
        ),
        problem.heads, K, fold + keep + draw(st.integers(2, 6)), problem.q.dtype,
    )  # fmt: skip
    if problem.S is not None and problem.z is not None:
        position = torch.tensor([draw(st.integers(1, 100)) for _ in range(B)])
        state.S.copy_(problem.S)
        state.z.copy_(problem.z)
    else:
        position = torch.zeros(B, dtype=torch.int64)
    state.folded.copy_(position)
    state.gates.fill_(draw(st.sampled_from([0.0, -9e6])))
    return state, position, {"fold": fold, "keep": keep}


def step_through(problem: Problem, state: PowerJournalState, position: Tensor, schedule: Schedule) -> Tensors:
    """Outputs and what the state has summed up at the end; `state` and `position` are written in place."""
    outputs = [problem.v.new_empty(len(problem.q), 0, problem.heads.output, problem.v.shape[-1])]
    for t in range(problem.q.shape[1]):
        q, k, v, log_g = (None if x is None else x[:, t] for x in (problem.q, problem.k, problem.v, problem.log_g))
        options, before = {**problem.step_options, **schedule}, state.folded.clone()
        outputs.append(power_journal_step(q, k, v, log_g, state=state, position=position, **options)[:, None])
        position += 1
        assert (position - state.folded < state.slots - 1).all()  # there is room for the next one
        if journal_step.can_look(state.S):
            assert torch.equal(state.folded, torch.maximum(before, due(position, state.slots, **schedule)))
    S, z = absorb(state, position, state.slots - 1, p=problem.p)
    return {"o": torch.cat(outputs, 1), "S_out": S, "z_out": z}


def whole(problem: Problem) -> Tensors:
    o, state = attend(problem)
    return {"o": o, "S_out": state.S, "z_out": state.z}


@pytest.mark.parametrize("looks", [True, False])  # a device that must not wait folds one token at a time
def test_steps_are_the_whole_sequence(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (journal_step, journal_read):
        monkeypatch.setattr(module, "can_look", lambda _: looks)

    @given(problems(shortest=1), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        assume(not vanishes(problem))
        problem = replace(problem, do=None, dS=None, dz=None)
        state, position, schedule = data.draw(journals(problem))
        addresses = [x.data_ptr() for x in state]
        ours = step_through(problem, state, position, schedule)
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
    state, position, schedule = data.draw(journals(problem))
    other = PowerJournalState(*(x.float() if x.dtype == problem.q.dtype else x.clone() for x in state))
    ours = step_through(problem, state, position.clone(), schedule)
    theirs = step_through(wide, other, position, schedule)
    assert ours["o"].dtype == problem.v.dtype
    assert torch.equal(ours["o"], theirs["o"].to(problem.v.dtype))


def read_on(problem: Problem, state: PowerJournalState, position: Tensor, **options: Any) -> tuple[Tensor, Any]:
    """`power_journal_attention` of a problem's tokens."""
    token = problem.q, problem.k, problem.v, problem.log_g
    options = {**problem.step_options, **options}
    with torch.no_grad():
        return power_journal_attention(*token, state=state, position=position, **options)


@given(problems(shortest=1), st.data())
def test_pieces_and_steps_in_any_order_are_the_whole_sequence(problem: Problem, data: st.DataObject) -> None:
    """Pieces longer than what is kept and shorter ones, rows that end earlier among them."""
    assume(not vanishes(problem))
    problem = replace(problem, do=None, dS=None, dz=None)
    state, position, schedule = data.draw(journals(problem))
    outputs, T, at = [], problem.q.shape[1], 0
    while at < T:
        if data.draw(st.booleans()):
            end = at + 1
            outputs.append(step_through(problem.tokens(at, end), state, position, schedule)["o"])
        else:
            end, before = at + data.draw(st.integers(1, T - at)), [x.clone() for x in state]
            o, after = read_on(problem.tokens(at, end), state, position, **schedule)
            assert all(map(torch.equal, state, before))  # no argument is changed
            state, position = after, position + end - at
            outputs.append(o)
            assert (position - state.folded < state.slots - 1).all()
        at = end
    S, z = absorb(state, position, state.slots - 1, p=problem.p)
    check_same(problem, {"o": torch.cat(outputs, 1), "S_out": S, "z_out": z}, whole(problem))


@settings(max_examples=25)
@given(problems(dtypes=(torch.float64,), shortest=1), st.data())
def test_padding_is_as_if_it_were_not(problem: Problem, data: st.DataObject) -> None:
    problem = replace(problem, do=None, dS=None, dz=None)
    state, position, schedule = data.draw(journals(problem))
    T = problem.q.shape[1]
    lengths = torch.tensor([data.draw(st.integers(0, T)) for _ in problem.q])
    o, after = read_on(problem, state, position, lengths=lengths, **schedule)
    assert o.isfinite().all()
    sums = absorb(after, position + lengths, after.slots - 1, p=problem.p)
    for row, length in enumerate(lengths.tolist()):
        one = problem.map(lambda x, row=row: x if x.dim() == 1 else x[row : row + 1]).tokens(0, length)
        begin = PowerJournalState(*(x[row : row + 1] for x in state)), position[row : row + 1]
        alone, last = read_on(one, *begin, **schedule)
        torch.testing.assert_close(o[row : row + 1, :length], alone)
        for x, y in zip(sums, absorb(last, begin[1] + length, last.slots - 1, p=problem.p), strict=True):
            torch.testing.assert_close(x[row : row + 1], y)


@settings(max_examples=25)
@given(problems(dtypes=(torch.float32,), shortest=1), st.data())
def test_a_token_has_the_same_bits_whether_it_is_stepped_or_read(problem: Problem, data: st.DataObject) -> None:
    """And so has the journal after any number of them."""
    problem = replace(problem, do=None, dS=None, dz=None)
    state, position, schedule = data.draw(journals(problem))
    one = problem.tokens(0, 1)
    o, _ = read_on(one, state, position, **schedule)
    _, last = read_on(problem, state, position, **schedule)
    assert torch.equal(step_through(one, state, position, schedule)["o"], o)
    step_through(problem.tokens(1, problem.q.shape[1]), state, position, schedule)
    held = (position - 1) % state.slots
    for stepped, read in zip(state[2:5], last[2:5], strict=True):
        row = torch.arange(len(held))
        assert torch.equal(stepped[row, held], read[row, held])


def test_gradients_pass_through_a_journal() -> None:
    q, k, v = torch.randn(3, 2, 9, 1, 4, dtype=torch.float64, requires_grad=True).unbind()
    log_g = -torch.rand(2, 9, 1, dtype=torch.float64)
    state = open_journal(init_power_state(2, 1, 4, 4, 2, dtype=torch.float64), Heads(1, 1, 1), 4, 6, torch.float64)
    outputs, position = [], torch.zeros(2, dtype=torch.int64)
    for part in (slice(0, 3), slice(3, 4), slice(4, 9)):
        o, state = power_journal_attention(
            q[:, part], k[:, part], v[:, part], log_g[:, part], state=state, position=position, fold=2, keep=1
        )
        outputs.append(o)
        position = position + o.shape[1]
    wanted = power_attention(q, k, v, log_g).o
    weights = torch.randn_like(wanted)
    ours, theirs = (torch.autograd.grad((o * weights).sum(), (q, k, v)) for o in (torch.cat(outputs, 1), wanted))
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y)


@settings(max_examples=25)
@given(problems(dtypes=(torch.float64,), gates=GATES, shortest=2), st.data())
def test_what_is_apart_can_be_taken_back(problem: Problem, data: st.DataObject) -> None:
    """A step back in position, as long as the tokens are apart, is as if they had never been."""
    assume(not vanishes(problem))
    problem = replace(problem, do=None, dS=None, dz=None)
    state, position, schedule = data.draw(journals(problem))
    step_through(problem.tokens(0, problem.q.shape[1] // 2), state, position, schedule)
    kept = PowerJournalState(*(x.clone() for x in state)), position.clone()
    other = problem.tokens(problem.q.shape[1] // 2, problem.q.shape[1])
    room = state.slots - 2 - int((position - state.folded).max())
    count = min(room, other.q.shape[1])
    wrong = other.tokens(0, count).map(lambda x: x if x.dim() < 3 else x.flip(1))  # sums and offsets are no tokens
    step_through(replace(wrong, S=None, z=None), state, position, schedule)
    position -= count
    assume(torch.equal(state.folded, kept[0].folded))
    again, fresh = step_through(other, state, position, schedule), step_through(other, *kept, schedule)
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
    with pytest.raises(InputError, match="fold: expected from 1 to 18, for a journal of 20 slots, was 19"):
        power_journal_step(q, k, v, state=good, position=at, fold=19)
    with pytest.raises(
        InputError, match=r"fold: expected from 1 to 15, for a .*20 slots of which 3 tokens are kept, was 16"
    ):
        power_journal_step(q, k, v, state=good, position=at, fold=16, keep=3)
    with pytest.raises(InputError, match="keep: expected from 0 to 17, for a journal of 20 slots, was 19"):
        power_journal_attention(q[:, None], k[:, None], v[:, None], state=good, position=at, keep=19)
