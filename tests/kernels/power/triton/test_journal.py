"""The kernels of a step beside a journal, run as Python by Triton's interpreter where that is on, or on a GPU."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.power import (
    PowerJournalState,
    absorb,
    init_power_state,
    journal_step,
    open_journal,
    power_journal_step,
)
from zoo.kernels.power.call import Fold, JournalStep
from zoo.kernels.power.journal_step import step_beside_journal
from zoo.kernels.power.triton.journal import JournalBlocks, triton_fold, triton_journal_step
from zoo.kernels.triton_support import INTERPRETED

from ..error_law import norms, tolerances, vanishes
from ..problems import GATES, Problem, Tensors, problems
from ..rounding import UNBOUNDED
from ..test_journal import Schedule, journals, read_on
from .test_step import DTYPES, make_problem, needs_gpu, on_device

pytestmark = [] if INTERPRETED else [pytest.mark.gpu, needs_gpu]


Begin = tuple[PowerJournalState, Tensor, Schedule]


def run(
    problem: Problem, begin: Begin, kind: str = "triton",
    blocks: JournalBlocks | None = None,
) -> Tensors:  # fmt: skip
    """All tokens of a problem, one step each, from a copy of a state: outputs, sums of all, how many are folded."""
    state, position, schedule = begin
    state, position = PowerJournalState(*(x.clone() for x in state)), position.clone()
    options = {"p": problem.p, "scale": problem.scale, "normalize": problem.normalize, **schedule}
    outputs = []
    for t in range(problem.q.shape[1]):
        token = [None if x is None else x[:, t] for x in (problem.q, problem.k, problem.v, problem.log_g)]
        call = JournalStep(*token, *state, position, problem.offset, **options)
        outputs.append(step_beside_journal(call) if kind == "plain" else triton_journal_step(call, blocks))
        position += 1
    S, z = absorb(state, position, state.slots - 1, p=problem.p)
    return {"o": torch.stack(outputs, 1), "S_out": S, "z_out": z, "folded": state.folded}


# One program a state, a few, or more than there are trips of rows or tokens.
BLOCKS = st.builds(
    JournalBlocks, splits=st.sampled_from([1, 2, 5, 40]), row_depth=st.sampled_from([1, 4]),
    token_depth=st.sampled_from([1, 2]), warps=st.sampled_from([4, 1]),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # an output beyond float16
@pytest.mark.parametrize(
    ("powers", "widths", "examples"), [((1, 2), (16, 32), 10), ((3,), (16,), 2), ((4,), (16,), 1)], ids=str
)
def test_error_law(powers: tuple[int, ...], widths: tuple[int, ...], examples: int) -> None:
    thorough = settings().max_examples > 100

    @settings(max_examples=10 * examples if thorough else examples)
    @given(problems(dtypes=DTYPES, powers=powers, widths=widths, batches=2, shortest=1, longest=5), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        problem = replace(problem, do=None, dS=None, dz=None, chunk_size=None)
        assume(not vanishes(problem))
        begin = data.draw(journals(problem))
        wide = PowerJournalState(*(x.double() if x.is_floating_point() else x for x in begin[0]))
        exact = run(problem.double(), (wide, *begin[1:]), "plain")
        allowed, uncertain = tolerances(problem, 1, exact), tolerances(problem.double(), 0, exact)
        blocks = data.draw(BLOCKS)
        problem = on_device(problem)
        begin = PowerJournalState(*(x.to(problem.q.device) for x in begin[0])), begin[1].to(problem.q.device), begin[2]
        ours, plain = run(problem, begin, blocks=blocks), run(problem, begin, "plain")
        for name in ("o", "S_out", "z_out"):
            reference, tiny = exact[name], allowed[name] + uncertain[name]
            claimed = (tiny < UNBOUNDED) & (reference.abs() < torch.finfo(ours[name].dtype).max)
            errors = [(x[name].cpu().double() - reference)[claimed] for x in (ours, plain)]
            for mine, theirs, last in zip(*map(norms, (*errors, tiny[claimed])), strict=True):
                assert mine <= 1.5 * theirs + last, (name, mine, theirs, last, blocks)
        if INTERPRETED:  # a GPU that runs the plain form folds one token at a time
            assert torch.equal(ours["folded"], exact["folded"])

    check()


def start(problem: Problem, slots: int = 5, *, past: bool = True) -> Begin:
    """The state before a problem's first token, over its sums or over nothing."""
    (B, _, _, K), V, device = problem.q.shape, problem.v.shape[-1], problem.q.device
    sums = init_power_state(B, problem.heads.state, K, V, problem.p, device=device)
    state, position = open_journal(sums, problem.heads, K, slots, problem.q.dtype), torch.zeros(B, device=device).long()
    if past:
        state.S.copy_(problem.S)
        state.z.copy_(problem.z)
        state.folded.add_(7)
        position.add_(7)
    return state, position, {"fold": 2, "keep": 0}


def step(problem: Problem, begin: Begin) -> Tensor:
    """The first token, through the op."""
    q, k, v, log_g = (None if x is None else x[:, 0] for x in (problem.q, problem.k, problem.v, problem.log_g))
    state, position, schedule = begin
    return power_journal_step(q, k, v, log_g, state=state, position=position, **schedule, **problem.step_options)


@settings(max_examples=10)
@given(
    problems(dtypes=DTYPES, powers=(1, 2), widths=(16, 32), batches=2, gates=GATES, shortest=1, longest=6), st.data()
)
def test_what_enters_sums_is_what_the_plain_form_has(problem: Problem, data: st.DataObject) -> None:
    """Of any number of tokens, none among them, each row by itself."""
    problem = replace(problem, do=None, dS=None, dz=None, chunk_size=None)
    state, position, schedule = data.draw(journals(problem))
    run_through = run(problem, (state, position, schedule), "plain")
    assume(all(x.isfinite().all() for x in run_through.values()))
    _, after = read_on(problem, state, position, fold=1, keep=state.slots - 3)
    end = position + problem.q.shape[1]
    until = torch.stack([torch.randint(int(a), int(b) + 1, ()) for a, b in zip(after.folded, end, strict=True)])
    exact = PowerJournalState(*(x.double() if x.is_floating_point() else x for x in after))
    expected = absorb(exact, until, state.slots - 1, p=problem.p)
    plain = absorb(after, until, state.slots - 1, p=problem.p)
    device = on_device(problem).q.device
    ours = triton_fold(Fold(*(x.to(device) for x in (*after, until)), problem.p))
    for mine, theirs, wanted in zip(ours, plain, expected, strict=True):
        errors = norms(mine.cpu().double() - wanted), norms(theirs.double() - wanted)
        for a, b, size in zip(*errors, norms(wanted), strict=True):
            assert a <= 1.5 * b + 1e-6 * size


@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize("p", [2, 4])
def test_a_token_alone_gives_its_value(p: int, splits: int) -> None:
    """However nearly orthogonal its query is to its key; in the step after it too, whose own key is zero."""
    problem = make_problem(T=2, heads=(4, 2, 2), p=p, gates="none")
    q, k = (x.repeat_interleave(4 // x.shape[2], 2) for x in (problem.q, problem.k[:, :1].expand_as(problem.k)))
    q = q - 0.999 * (q * k).sum(-1, keepdim=True) / (k * k).sum(-1, keepdim=True) * k
    problem = replace(problem, q=q, k=problem.k * torch.tensor([1.0, 0.0], device=k.device)[:, None, None])
    o = run(problem, start(problem, past=False), blocks=JournalBlocks(splits, 4, 1, 4))["o"]
    torch.testing.assert_close(o, problem.v[:, :1].repeat_interleave(2, 2).expand_as(o), rtol=1e-6, atol=1e-6)


def test_splits_change_the_rounding_of_the_output_only() -> None:
    problem = make_problem(T=4, heads=(3, 1, 1), V=32)
    one, many = (run(problem, start(problem), blocks=JournalBlocks(splits, 1, 1, 4)) for splits in (1, 9))
    assert torch.equal(one["S_out"], many["S_out"])
    assert torch.equal(one["z_out"], many["z_out"])
    torch.testing.assert_close(one["o"], many["o"], rtol=2e-5, atol=2e-6)


def test_two_runs_give_the_same_bits() -> None:
    problem = make_problem(T=4, heads=(4, 2, 1))
    first, second = run(problem, start(problem)), run(problem, start(problem))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_the_op_runs_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(T=1)
    monkeypatch.delattr(journal_step, "step_beside_journal")
    begin = start(problem)
    o, expected = step(problem, begin), run(problem, start(problem))
    assert torch.equal(o, expected["o"][:, 0])
    assert torch.equal(begin[0].folded, expected["folded"])


def test_what_the_kernels_do_not_take_goes_another_way() -> None:
    for problem in (make_problem(T=1, K=16, V=16).double(), make_problem(T=1, K=6, V=5)):
        state, *rest = start(problem)
        state = PowerJournalState(state.S.to(problem.accumulation), state.z.to(problem.accumulation), *state[2:])
        expected = run(problem, (state, *rest), "plain")
        assert torch.equal(step(problem, (state, *rest)), expected["o"][:, 0])


def test_an_empty_batch() -> None:
    problem = make_problem(T=1).map(lambda x: x[:0])
    assert step(problem, start(problem)).shape == (0, 2, 16)


@pytest.mark.parametrize("gated", [True, False])
def test_opcheck(gated: bool) -> None:
    problem = make_problem(T=1)
    token = [x[:, 0] for x in (problem.q, problem.k, problem.v, problem.log_g)]
    state, position, schedule = start(problem)
    arguments = (*token[:3], token[3] if gated else None, *state, position, None, 2, 0.25, True, *schedule.values())
    torch.library.opcheck(torch.ops.zoo.power_attention_journal_step, arguments)


def check_real_size(problem: Problem, slots: int, fold: int) -> None:
    """Assert the error law, with `tiny` float32's last digits, against the same steps in float64."""
    begin = start(problem, slots)[0], start(problem)[1], {"fold": fold, "keep": 3}
    wide = PowerJournalState(*(x.double() if x.is_floating_point() else x for x in begin[0])), *begin[1:]
    exact, ours, plain = run(problem.double(), wide, "plain"), run(problem, begin), run(problem, begin, "plain")
    for name in ("o", "S_out", "z_out"):
        reference = exact[name]
        errors = norms(ours[name].double() - reference), norms(plain[name].double() - reference)
        for mine, theirs, size in zip(*errors, norms(reference), strict=True):
            assert mine <= 1.5 * theirs + 1e-6 * size, (name, mine / size, theirs / size)


@needs_gpu
@pytest.mark.parametrize(
    ("B", "heads", "K", "V", "p"),
    [(16, (12, 12, 12), 64, 64, 2), (2, (32, 1, 1), 64, 64, 2), (2, (2, 2, 8), 64, 32, 1), (3, (4, 4, 1), 32, 64, 3),
     (2, (4, 2, 2), 128, 128, 2), (2, (4, 2, 2), 16, 16, 4)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_error_law_over_sizes(B: int, heads: tuple[int, int, int], K: int, V: int, p: int, dtype: torch.dtype) -> None:
    check_real_size(make_problem(B, 80, heads, K, V, p, dtype=dtype, gates="resets", aligned=True), 40, 32)


@needs_gpu
def test_replayed_graphs_give_the_same_bits() -> None:
    """Steps that fold and others, from one recording; rows fold at different times."""
    problem = make_problem(4, 1, (8, 4, 4), 64, 64, dtype=torch.bfloat16)
    (state, position, schedule), expected = start(problem), start(problem)
    for at in (position, expected[1]):
        at.add_(torch.arange(4, device=at.device) % 3)
    step(problem, start(problem))  # what is built and loaded on the first call cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = step(problem, (state, position, schedule))
        position.add_(1)
    for _ in range(9):
        graph.replay()
        assert torch.equal(o, step(problem, expected))
        expected[1].add_(1)
        assert all(torch.equal(x, y) for x, y in zip(state, expected[0], strict=True))
    assert state.folded.tolist() != [7] * 4
