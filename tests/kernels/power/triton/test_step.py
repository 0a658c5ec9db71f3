"""The decode step's kernels, run as Python by Triton's interpreter where that is on, on a GPU otherwise."""

from dataclasses import replace
from itertools import combinations_with_replacement

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.power import PowerState, init_power_state, op, power_attention_step, state_size
from zoo.kernels.power.call import Step
from zoo.kernels.power.expansion import coefficient_array, expand
from zoo.kernels.power.step import step_in_place
from zoo.kernels.power.triton.step import StepBlocks, row_channels, step_blocks, triton_step
from zoo.kernels.triton_support import INTERPRETED

from ..error_law import norms, tolerances, vanishes
from ..problems import Problem, Tensors, make_gates, problems
from ..rounding import UNBOUNDED

DEVICE = "cpu" if INTERPRETED else "cuda"
needs_gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU")
pytestmark = [] if INTERPRETED else [pytest.mark.gpu, needs_gpu]
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _row_channels_kernel(
    out, coefficients, count, K: tl.constexpr, P: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channels, coefficient = row_channels(row, K, P, D)
    for place in tl.static_range(P):
        tl.store(out + row * P + place, channels[place], row < count)
    tl.store(coefficients + row, coefficient, row < count)


@pytest.mark.parametrize(
    ("K", "p"),
    [(16, 1), (128, 1), (16, 2), (32, 2), (64, 2), (128, 2), (16, 3), (32, 3), (64, 3), (128, 3), (16, 4), (32, 4),
     (17, 1), (17, 2), (65, 2), (129, 2), (33, 3), (17, 4)],  # with an offset's channel
)  # fmt: skip
def test_a_row_knows_its_channels(K: int, p: int) -> None:
    """All rows, and some beyond the last, which stay inside k and q."""
    D = state_size(K, p)
    count, block = D + 40, 4096
    channels = torch.full((count, p), -1, dtype=torch.int32, device=DEVICE)
    coefficients = torch.zeros(count, device=DEVICE)
    _row_channels_kernel[(triton.cdiv(count, block),)](channels, coefficients, count, K=K, P=p, D=D, BLOCK=block)
    assert torch.equal(channels[:D].cpu(), torch.tensor(list(combinations_with_replacement(range(K), p))).int())
    assert torch.equal(coefficients[:D].cpu(), torch.from_numpy(coefficient_array(K, p)).float())
    assert (channels[D:] == K - 1).all()


def run(problem: Problem, kind: str = "triton", blocks: StepBlocks | None = None) -> Tensors:
    """All tokens of a problem, one step each, from its state or an empty one: `o`, `S_out`, `z_out`."""
    state = initial_state(problem)
    options = {"p": problem.p, "scale": problem.scale, "normalize": problem.normalize}
    outputs = []
    for t in range(problem.q.shape[1]):
        token = [None if x is None else x[:, t] for x in (problem.q, problem.k, problem.v, problem.log_g)]
        call = Step(*token, *state, problem.offset, **options)
        outputs.append(step_in_place(call) if kind == "plain" else triton_step(call, blocks))
    return {"o": torch.stack(outputs, 1), "S_out": state.S, "z_out": state.z}


def initial_state(problem: Problem) -> PowerState:
    """A copy to write to."""
    if problem.state is not None:
        return PowerState(*(x.clone(memory_format=torch.contiguous_format) for x in problem.state))
    K, V = problem.q.shape[-1], problem.v.shape[-1]
    return init_power_state(
        problem.q.shape[0], problem.heads.state, K, V, problem.p, offset=problem.offset is not None,
        dtype=problem.accumulation, device=problem.q.device,
    )  # fmt: skip


def on_device(problem: Problem) -> Problem:
    return problem.map(lambda x: x.to(DEVICE))


@st.composite
def blocks_for(draw: st.DrawFn, problem: Problem) -> StepBlocks:
    """One program a state, a few, or as many as there can be."""
    states, V = problem.q.shape[0] * problem.heads.state, problem.v.shape[-1]
    programs, depth = draw(st.sampled_from([1, 2 * states, 3 * states, 1000])), draw(st.sampled_from([4, 1]))
    warps = 4 if problem.p < 3 else 16  # the interpreter takes as long for a wide tile as for a narrow one
    rows = state_size(problem.q.shape[-1], problem.p, offset=problem.offset is not None)
    return step_blocks(states, rows, V, programs=programs, depth=depth, warps=warps)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # an output beyond float16
@pytest.mark.parametrize(
    ("powers", "widths", "examples"), [((1, 2), (16, 32), 25), ((3,), (16,), 8), ((4,), (16,), 3)], ids=str
)
def test_error_law(powers: tuple[int, ...], widths: tuple[int, ...], examples: int) -> None:
    thorough = settings().max_examples > 100

    @settings(max_examples=10 * examples if thorough else examples)
    @given(problems(dtypes=DTYPES, powers=powers, widths=widths, batches=2, shortest=1, longest=3), st.data())
    def check(problem: Problem, data: st.DataObject) -> None:
        problem = replace(problem, do=None, dS=None, dz=None, chunk_size=None)
        assume(not vanishes(problem))
        exact = run(problem.double(), "plain")
        allowed, uncertain = tolerances(problem, 1, exact), tolerances(problem.double(), 0, exact)
        blocks = data.draw(blocks_for(problem))
        problem = on_device(problem)
        ours, plain = run(problem, blocks=blocks), run(problem, "plain")
        for name, reference in exact.items():
            tiny = allowed[name] + uncertain[name]
            claimed = (tiny < UNBOUNDED) & (reference.abs() < torch.finfo(ours[name].dtype).max)
            errors = [(x[name].cpu().double() - reference)[claimed] for x in (ours, plain)]
            for mine, theirs, last in zip(*map(norms, (*errors, tiny[claimed])), strict=True):
                assert mine <= 1.5 * theirs + last, (name, mine, theirs, last, blocks)

    check()


def make_problem(
    B: int = 2, T: int = 2, heads: tuple[int, int, int] = (2, 1, 1), K: int = 16, V: int = 16, p: int = 2, *,
    dtype: torch.dtype = torch.float32, gates: str = "mild", normalize: bool | None = None, aligned: bool = False,
) -> Problem:  # fmt: skip
    """A problem on the device, with a state that some tokens left.

    aligned: queries and keys have a direction in common. Otherwise a token that is alone, and nearly orthogonal to its
    own key, has an output that is all error.
    """
    random = torch.Generator().manual_seed(K + V + p)
    q, k, v = (torch.randn(B, T, h, width, generator=random) for h, width in zip(heads, (K, K, V), strict=True))
    if aligned:
        common = torch.randn(B, 1, 1, K, generator=random)
        q, k = q + common, k + common
    q, k, v = (x.to(dtype) for x in (q, k, v))
    past = expand(torch.randn(B, max(heads[1:]), 8, K, generator=random).to(DEVICE), p)
    S = past.mT @ torch.randn(B, max(heads[1:]), 8, V, generator=random).to(DEVICE)
    normalize = p % 2 == 0 if normalize is None else normalize
    log_g = make_gates(gates, (B, T, heads[2]), random)
    return on_device(Problem(q, k, v, log_g, S, past.sum(2), None, None, None, p, K**-0.5, normalize, None))


def test_an_infinite_gate_forgets_large_numbers() -> None:
    problem = make_problem(gates="zeros")
    problem = replace(problem, log_g=torch.full_like(problem.log_g, -torch.inf))
    empty = replace(problem, S=torch.zeros_like(problem.S), z=torch.zeros_like(problem.z))
    large = replace(problem, S=torch.full_like(problem.S, -3e38), z=torch.full_like(problem.z, 3e38))
    expected = run(empty)
    assert all(torch.equal(x, expected[name]) for name, x in run(large).items())


def test_a_strong_gate_decays_to_the_last_digits() -> None:
    problem = make_problem(T=1, gates="strong")
    problem = replace(problem, k=torch.zeros_like(problem.k))
    exact, ours = run(problem.double(), "plain"), run(problem)
    for name in ("S_out", "z_out"):
        torch.testing.assert_close(ours[name].double(), exact[name], rtol=2e-7, atol=0)


@pytest.mark.parametrize("programs", [1, 1000])
@pytest.mark.parametrize("p", [2, 4])
def test_a_token_alone_gives_its_value(p: int, programs: int) -> None:
    """However nearly orthogonal its query is to its key."""
    problem = make_problem(T=1, heads=(4, 2, 2), p=p, gates="none")
    problem = replace(problem, S=torch.zeros_like(problem.S), z=torch.zeros_like(problem.z))
    q, k = (x.repeat_interleave(4 // x.shape[2], 2) for x in (problem.q, problem.k))
    q = q - 0.999 * (q * k).sum(-1, keepdim=True) / (k * k).sum(-1, keepdim=True) * k
    result = run(replace(problem, q=q), blocks=step_blocks(4, state_size(16, p), 16, programs=programs))
    torch.testing.assert_close(result["o"], problem.v.repeat_interleave(2, 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-17])
@pytest.mark.parametrize("programs", [1, 1000])
def test_vanishing_denominators_give_zero(size: float, programs: int) -> None:
    """Keys of 1e-17 and a small query leave a denominator of some 1e-40, too small to divide by, and a state."""
    problem = make_problem(T=1)
    problem = replace(problem, q=1e-3 * problem.q)
    problem = replace(problem, S=torch.zeros_like(problem.S), z=torch.zeros_like(problem.z))
    problem = replace(problem, k=size * torch.ones_like(problem.k), v=1e10 * torch.ones_like(problem.v))
    result = run(problem, blocks=step_blocks(2, 136, 16, programs=programs))
    assert not result["o"].any()
    assert bool(result["S_out"].any()) == (size > 0)


def test_splits_change_the_rounding_of_the_output_only() -> None:
    problem = make_problem(heads=(3, 1, 1), V=64)
    one, many = (run(problem, blocks=step_blocks(2, 136, 64, programs=programs, depth=1)) for programs in (1, 1000))
    assert torch.equal(one["S_out"], many["S_out"])
    assert torch.equal(one["z_out"], many["z_out"])
    torch.testing.assert_close(one["o"], many["o"], rtol=2e-5, atol=2e-6)


def test_two_runs_give_the_same_bits() -> None:
    problem = make_problem(heads=(4, 2, 1), V=32)
    first, second = run(problem), run(problem)
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_blocks_cover_all_rows_once() -> None:
    for states in (1, 8, 100, 192, 512, 70_000):
        for K, p in ((16, 1), (64, 1), (16, 2), (64, 2), (128, 2), (64, 3), (16, 4)):
            for V in (16, 32, 64, 128):
                D, blocks = state_size(K, p), step_blocks(states, state_size(K, p), V)
                assert (blocks.splits - 1) * blocks.rows < D <= blocks.splits * blocks.rows
                assert blocks.rows % (blocks.depth * blocks.width(V)) == 0


def step(problem: Problem, state: PowerState) -> Tensor:
    """The first token, through the op."""
    q, k, v, log_g = (None if x is None else x[:, 0] for x in (problem.q, problem.k, problem.v, problem.log_g))
    return power_attention_step(
        q, k, v, log_g, state=state, p=problem.p, scale=problem.scale, normalize=problem.normalize
    )


def test_the_op_runs_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(T=1)
    monkeypatch.delattr(op, "step_in_place")
    state = initial_state(problem)
    o, expected = step(problem, state), run(problem)
    assert torch.equal(o, expected["o"][:, 0])
    assert torch.equal(state.S, expected["S_out"])
    assert torch.equal(state.z, expected["z_out"])


def test_what_the_kernels_do_not_take_goes_another_way() -> None:
    """Widths, dtypes and states that are views: the same result, and what lies between a view's numbers is kept."""
    wide = make_problem(T=1, K=16, V=16).double()
    odd = make_problem(T=1, K=6, V=5)
    for problem in (wide, odd):
        state, expected = initial_state(problem), run(problem, "plain")
        assert torch.equal(step(problem, state), expected["o"][:, 0])
    problem = make_problem(T=1)
    buffers = [torch.stack((x, torch.full_like(x, 7.0)), -1) for x in initial_state(problem)]
    view = PowerState(*(x[..., 0] for x in buffers))
    expected = run(problem)
    torch.testing.assert_close(step(problem, view), expected["o"][:, 0])
    torch.testing.assert_close(view.S, expected["S_out"])
    assert all((x[..., 1] == 7).all() for x in buffers)


def test_an_empty_batch() -> None:
    problem = make_problem(T=1).map(lambda x: x[:0])
    assert step(problem, initial_state(problem)).shape == (0, 2, 16)


@pytest.mark.parametrize("gated", [True, False])
def test_opcheck(gated: bool) -> None:
    problem = make_problem(T=1)
    token = [x[:, 0] for x in (problem.q, problem.k, problem.v, problem.log_g)]
    arguments = (*token[:3], token[3] if gated else None, *initial_state(problem), None, 2, 0.25, True)
    torch.library.opcheck(torch.ops.zoo.power_attention_step, arguments)


def test_compiles_whole_with_what_surrounds_it() -> None:
    problem = make_problem(T=1)
    state, expected = initial_state(problem), run(replace(problem, q=2 * problem.q))
    compiled = torch.compile(lambda: step(replace(problem, q=2 * problem.q), state) + 1, fullgraph=True)
    torch.testing.assert_close(compiled(), expected["o"][:, 0] + 1)
    torch.testing.assert_close(state.S, expected["S_out"])


def check_real_size(problem: Problem) -> None:
    """Assert the error law, with `tiny` float32's last digits, against the same steps in float64."""
    exact, ours, plain = run(problem.double(), "plain"), run(problem), run(problem, "plain")
    for name, reference in exact.items():
        errors = norms(ours[name].double() - reference), norms(plain[name].double() - reference)
        for mine, theirs, size in zip(*errors, norms(reference), strict=True):
            assert mine <= 1.5 * theirs + 3e-7 * size, (name, mine / size, theirs / size)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gates", ["none", "mild", "strong", "resets"])
def test_error_law_at_the_size_of_a_large_batch(dtype: torch.dtype, gates: str) -> None:
    aligned = gates in ("strong", "resets")
    check_real_size(make_problem(64, 3, (8, 8, 8), 64, 64, 2, dtype=dtype, gates=gates, aligned=aligned))


@needs_gpu
@pytest.mark.parametrize(
    ("B", "heads", "K", "V", "p", "normalize"),
    [(1, (8, 8, 8), 64, 64, 2, True), (16, (12, 12, 12), 64, 64, 2, True), (4, (24, 2, 2), 64, 64, 2, True),
     (2, (32, 1, 1), 64, 64, 2, True), (2, (2, 2, 8), 64, 32, 2, False), (3, (4, 4, 1), 32, 64, 2, True),
     (4, (8, 4, 4), 128, 128, 2, True), (64, (8, 8, 8), 64, 64, 1, False), (2, (2, 2, 2), 64, 64, 3, False),
     (8, (8, 8, 8), 32, 32, 3, False), (1, (2, 2, 2), 128, 16, 3, False), (2, (4, 2, 2), 32, 128, 4, True),
     (2, (2, 2, 2), 16, 16, 4, True)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_error_law_over_sizes(
    B: int, heads: tuple[int, int, int], K: int, V: int, p: int, normalize: bool, dtype: torch.dtype
) -> None:
    check_real_size(make_problem(B, 3, heads, K, V, p, dtype=dtype, normalize=normalize))


@needs_gpu
def test_replayed_graphs_give_the_same_bits() -> None:
    problem = make_problem(4, 1, (8, 4, 4), 64, 64, dtype=torch.bfloat16)
    state, expected = initial_state(problem), initial_state(problem)
    step(problem, initial_state(problem))  # what is built and loaded on the first call cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = step(problem, state)
    for _ in range(3):
        graph.replay()
        assert torch.equal(o, step(problem, expected))
    assert torch.equal(state.S, expected.S)
    assert torch.equal(state.z, expected.z)


@needs_gpu
def test_offsets_beyond_two_to_the_31st() -> None:
    """A batch whose states hold 2.2e9 numbers, all rows the same: they stay the same."""
    problem = make_problem(1, 1, (2, 2, 2), 128, 64, dtype=torch.bfloat16)
    whole, alone = run(problem.map(lambda x: x.expand(2100, *x.shape[1:]))), run(problem)
    assert (whole["S_out"] == alone["S_out"]).all()
    torch.testing.assert_close(whole["o"], alone["o"].expand_as(whole["o"]), rtol=0.01, atol=0.01)
