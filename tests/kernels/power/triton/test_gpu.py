"""The Triton kernels on a GPU: the error law beside the quadratic form in the same dtype, shapes that break others."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from zoo.kernels import launch
from zoo.kernels.power import PowerState, power_attention
from zoo.kernels.power.call import Inputs, Options
from zoo.kernels.power.triton.configs import block_sizes

from ..error_law import norms
from ..problems import Problem, Tensors, attend, make_gates, make_state, run
from ..test_context import run_in_halves
from .plain import run_in_chunks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
NARROW = (torch.bfloat16, torch.float16)
UNIT = 2.0**-24  # float32's unit roundoff


def make_problem(
    B: int = 1, T: int = 1025, heads: tuple[int, int, int] = (2, 1, 1), K: int = 64, V: int = 64, p: int = 2, *,
    dtype: torch.dtype = torch.bfloat16, gates: str = "mild", normalize: bool | None = None, state: bool = False,
    zero_keys: float = 0.0, aligned: bool = False, seed: int = 0,
) -> Problem:  # fmt: skip
    """A problem of normal numbers.

    aligned: queries and keys have a direction in common. Otherwise a token that is nearly alone, and nearly orthogonal
    to its own key, has gradients like 1 / s, and one such token's luck decides how large a whole tensor's error is.
    """
    random = torch.Generator().manual_seed(T + K + p + 1000 * seed)
    shapes = ((B, T, heads[0], K), (B, T, heads[1], K), (B, T, heads[2], V), (B, T, max(heads), V))
    q, k, v, do = (torch.randn(shape, generator=random) for shape in shapes)
    if aligned:
        common = torch.randn(B, 1, 1, K, generator=random)
        q, k = q + common, k + common
    q, k, v, do = (x.to(dtype) for x in (q, k, v, do))
    k = torch.where(torch.rand(*k.shape[:3], 1, generator=random) < zero_keys, 0, k)
    log_g = make_gates(gates, (B, T, heads[2]), random)
    S = z = dS = dz = None
    if state:
        S, z = (x.float() for x in make_state(B, max(heads[1:]), K, V, p, 50, random))
        dS, dz = (torch.randn(x.shape, generator=random) / math.sqrt(x.shape[2]) for x in (S, z))
    normalize = p % 2 == 0 if normalize is None else normalize
    return Problem(q, k, v, log_g, S, z, do, dS, dz, p, 1 / math.sqrt(K), normalize, None).map(lambda x: x.cuda())


def check_error_law(problem: Problem) -> None:
    """Assert the error law against the float64 quadratic form, with `tiny` float32's last digits.

    The baseline is the quadratic form in the inputs' dtype. For the largest single error it is that or the state form
    in plain PyTorch, whichever errs more: just after a chunk's start, where a few tokens count that only a state
    holds, sums of monomials cancel, and a state of narrow numbers loses digits that scores do not lose.
    """
    exact = run(problem.double(), "quadratic")
    size = block_sizes(problem.q, problem.q.shape[-1], problem.v.shape[-1], problem.p, hopper=False).chunk
    baseline, in_chunks = run(problem, "quadratic"), run_in_chunks(problem, size)
    _compare(problem, exact, baseline, in_chunks, run(problem, "triton"))


def _compare(problem: Problem, exact: Tensors, baseline: Tensors, in_chunks: Tensors, ours: Tensors) -> None:
    broken, cancelling = [], _cancelling(problem.double())
    for name, reference in exact.items():
        error, squares, state_form = (norms(x[name].double() - reference) for x in (ours, baseline, in_chunks))
        assert all(map(math.isfinite, error)), name
        scale, digits = norms(reference), 3e-6
        if name == "dlog_g":  # sums of pairs' products, which add up to do . o for each token, and cancel
            assert problem.do is not None
            along = norms((problem.do * exact["o"]).sum(-1))
            scale, digits = (max(scale[0], along[0]), max(scale[1], along[1])), 3e-5
        if name in cancelling:  # rounded once: all there is where a token is alone, and its gradient is zero
            squares = tuple(a + UNIT * b / 1.5 for a, b in zip(squares, norms(cancelling[name]), strict=True))
        allowed = (squares[0], max(squares[1], state_form[1]))
        for norm, mine, theirs, size in zip(("L2", "max"), error, allowed, scale, strict=True):
            if mine > 1.5 * theirs + digits * size:
                broken.append(f"{name} {norm}: {mine:.2e}, baseline {theirs:.2e} (x{mine / max(theirs, 1e-300):.2f})")
    assert not broken, "; ".join(broken)


def _cancelling(problem: Problem) -> Tensors:
    """The numerators' share of the gradients for q and k, where denominators take it away again."""
    if not problem.normalize or problem.do is None:
        return {}
    state = None if problem.z is None else problem.z[..., None]
    ones = replace(problem, v=torch.ones_like(problem.v[..., :1]), S=state, normalize=False)
    denominator = attend(ones, "quadratic")[0]
    do = torch.where(denominator == 0, 0, problem.do / denominator)
    found = run(replace(problem, do=do, normalize=False), "quadratic")
    return {name: found[name] for name in ("dq", "dk")}


@pytest.mark.parametrize("T", [1, 15, 17, 1000, 1025, 4097])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_error_law_over_lengths(T: int, dtype: torch.dtype) -> None:
    check_error_law(make_problem(B=max(1, 8192 // T), T=T, dtype=dtype, aligned=T < 1000))


@pytest.mark.parametrize("gates", ["none", "zeros", "mild", "strong", "resets", "mixed"])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
def test_error_law_over_gates(gates: str, state: bool, dtype: torch.dtype) -> None:
    aligned = gates in ("strong", "resets", "mixed")
    check_error_law(make_problem(B=4, T=2500, gates=gates, state=state, dtype=dtype, aligned=aligned))


@pytest.mark.parametrize(
    ("K", "V", "p", "normalize"),
    [(64, 64, 1, False), (128, 128, 1, False), (16, 16, 2, True), (32, 64, 2, True), (64, 32, 2, False),
     (128, 128, 2, True), (128, 16, 2, True), (32, 32, 3, False), (64, 64, 3, False), (16, 16, 4, True),
     (32, 16, 4, True)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_error_law_over_widths(K: int, V: int, p: int, normalize: bool, dtype: torch.dtype) -> None:
    B = 4 if p <= 2 else 2
    check_error_law(make_problem(B=B, T=2200, K=K, V=V, p=p, normalize=normalize, dtype=dtype, aligned=normalize))


@pytest.mark.parametrize("heads", [(24, 2, 2), (1, 1, 4), (4, 1, 4), (2, 4, 1), (8, 4, 2)])
@pytest.mark.parametrize("width", [32, 64])  # Triton's kernels, and Hopper's own
def test_error_law_over_heads(heads: tuple[int, int, int], width: int) -> None:
    check_error_law(make_problem(B=4, T=2100, heads=heads, K=width, V=width, aligned=True))


@pytest.mark.parametrize("gates", ["none", "mild", "strong"])
@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
def test_error_law_of_keys_that_heads_share(gates: str, dtype: torch.dtype) -> None:
    """Mamba-2's shape: what heads give to a query and a key that they share is added up before they meet tokens."""
    problem = make_problem(T=2500, heads=(1, 1, 24), K=128, V=64, p=1, normalize=False, gates=gates, dtype=dtype)
    check_error_law(problem)


def test_error_law_with_zero_keys_and_a_large_batch() -> None:
    check_error_law(make_problem(B=64, T=260, heads=(2, 1, 1), K=32, V=32, zero_keys=0.3, aligned=True))


@pytest.mark.parametrize("gates", ["strong", "resets", "mixed"])
@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
def test_lonely_tokens_have_finite_gradients(gates: str, dtype: torch.dtype) -> None:
    problem = make_problem(B=8, T=300, gates=gates, dtype=dtype, zero_keys=0.3, state=True)
    assert all(x.isfinite().all() for x in run(problem, "triton").values())


def test_layouts() -> None:
    problem = make_problem(T=1500, heads=(2, 2, 2))
    heads_first = problem.map(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))
    first, second = run(problem, "triton"), run(heads_first, "triton")
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.parametrize("compiled", [False, True])
def test_two_runs_give_the_same_bits(compiled: bool) -> None:
    problem = make_problem(T=5000, heads=(4, 2, 2))
    inputs = [x.requires_grad_() for x in (problem.q, problem.k, problem.v, problem.log_g)]  # type: ignore[union-attr]

    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        return power_attention(*inputs, p=2).o

    function = torch.compile(attend, fullgraph=True) if compiled else attend
    runs = [torch.autograd.grad(function(*inputs), inputs, problem.do) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.parametrize(("p", "width"), [(1, 64), (2, 32), (2, 64), (2, 128), (3, 32)])
def test_opcheck(p: int, width: int) -> None:
    problem = make_problem(T=2100, K=width, V=width, p=p)
    inputs = [x.requires_grad_() for x in (problem.q, problem.k, problem.v, problem.log_g)]  # type: ignore[union-attr]
    normalize = p % 2 == 0
    options = Options(
        p, width**-0.5, normalize, use_triton=True, return_state=True, save_states=True, save_output=not normalize
    )
    torch.library.opcheck(torch.ops.zoo.power_attention, (*Inputs(*inputs), *options))


@pytest.mark.parametrize(("p", "width"), [(1, 64), (2, 64), (2, 128)])
def test_recorded_graphs_give_the_same_bits(p: int, width: int) -> None:
    problem = make_problem(T=3000, K=width, V=width, p=p)
    inputs = [x.requires_grad_() for x in (problem.q, problem.k, problem.v, problem.log_g)]  # type: ignore[union-attr]

    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        return power_attention(*inputs, p=p).o

    plain, recorded = torch.compile(attend, fullgraph=True), torch.compile(attend, mode="reduce-overhead")
    assert problem.do is not None
    expected = torch.autograd.grad(plain(*inputs), inputs, problem.do)
    for _ in range(4):  # warmed up, recorded, replayed
        torch.compiler.cudagraph_mark_step_begin()
        found = torch.autograd.grad(recorded(*inputs), inputs, problem.do)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("T", [100, 5000])  # one chunk, and several
@pytest.mark.parametrize(("p", "width"), [(1, 64), (2, 64), (3, 32)])
@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
def test_compiled_gives_what_is_launched(dtype: torch.dtype, p: int, width: int, T: int, state: bool) -> None:
    check_compiled(make_problem(T=T, K=width, V=width, p=p, dtype=dtype, state=state))


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
def test_compiled_gives_what_is_launched_of_keys_that_heads_share(dtype: torch.dtype, state: bool) -> None:
    check_compiled(make_problem(T=5000, heads=(1, 1, 8), K=64, V=64, p=1, normalize=False, dtype=dtype, state=state))


def check_compiled(problem: Problem) -> None:
    torch.compiler.reset()
    inputs = [x.requires_grad_() for x in problem.tensors.values()]
    gradients = list(problem.gradients.values())
    p, normalize, state, dtype = problem.p, problem.normalize, problem.state is not None, problem.q.dtype

    def results(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor, *parts: torch.Tensor
    ) -> list[torch.Tensor]:
        before = PowerState(*parts) if parts else None
        o, after = power_attention(
            q, k, v, log_g, p=p, normalize=normalize, state=before, return_state=state, impl="triton"
        )
        return [o] if after is None else [o, *after]

    expected, found = results(*inputs), torch.compile(results, fullgraph=True)(*inputs)
    pairs = list(zip(found, expected, strict=True))
    pairs += zip(*(torch.autograd.grad(x, inputs, gradients) for x in (found, expected)), strict=True)
    for a, b in pairs:  # what surrounds the kernels is fused
        assert (a - b).norm() <= (1e-5 if b.dtype == dtype == torch.float32 else 1e-3) * b.norm()


def test_lengths_cause_at_most_two_compilations() -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda q, k, v, g: power_attention(q, k, v, g).o, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(recompile_limit=2):
        for T in (100, 1000, 2048, 2049, 3000, 10000):
            problem = make_problem(T=T)
            o = compiled(problem.q, problem.k, problem.v, problem.log_g)
            torch.testing.assert_close(o, power_attention(problem.q, problem.k, problem.v, problem.log_g).o)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9, reason="needs kernels of its own"
)
def test_other_lengths_batches_and_heads_compile_nothing() -> None:
    def kernels(B: int, T: int, heads: int = 8) -> set[int]:
        run(make_problem(B=B, T=T, heads=(heads, heads, heads)), "triton")
        return {id(kernel) for kernel in launch._compiled.values()}

    before = kernels(1, 8192)
    assert kernels(2, 4097) | kernels(1, 65536) | kernels(3, 9000) | kernels(2, 5000, heads=16) == before
    assert len(kernels(1, 5000, heads=1) - before) <= 2  # scans, which look further ahead where there are few programs


def test_packed_sequences_equal_separate_calls() -> None:
    problem = make_problem(T=5000)
    ends = [0, 1, 1200, 1300, 5000]
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device="cuda")
    packed = run(problem, "triton", cu_seqlens=cu_seqlens)
    for a, b in pairwise(ends):
        alone = run(problem.tokens(a, b), "triton", chunk_size=1024)
        for name in ("o", "dq", "dk", "dv"):
            torch.testing.assert_close(packed[name][:, a:b], alone[name], rtol=0.02, atol=0.01)


def test_a_million_tokens_in_pieces() -> None:
    """Whole and in two pieces; the far end of a long sequence is as exact as its start."""
    problem = replace(make_problem(T=1_000_000, heads=(1, 1, 1), K=32, V=32), do=None)
    whole = power_attention(problem.q, problem.k, problem.v, problem.log_g, return_state=True)
    half = 500_001
    first, last = problem.tokens(0, half), problem.tokens(half, 1_000_000)
    state = power_attention(first.q, first.k, first.v, first.log_g, return_state=True).state
    assert isinstance(state, PowerState)
    end = power_attention(last.q, last.k, last.v, last.log_g, state=state, return_state=True)
    assert whole.state is not None
    assert end.state is not None
    for x, y in ((end.o, whole.o[:, half:]), (end.state.S, whole.state.S)):
        assert (x.double() - y).norm() < 0.01 * y.double().norm()


def test_offsets_beyond_two_to_the_31st() -> None:
    """16 rows of 70,000 tokens and 32 heads of 64: 2.3e9 elements, and the last row equals itself alone."""
    q = torch.randn(16, 70_000, 32, 64, device="cuda", dtype=torch.bfloat16)
    v = q.flip(-1)
    with torch.no_grad():
        whole = power_attention(q, q, v, p=2).o[-1:].clone()
        assert torch.equal(power_attention(q[-1:], q[-1:], v[-1:], p=2).o, whole)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_halves_of_shares_are_as_near_as_one_call(p: int, dtype: torch.dtype) -> None:
    problem = make_problem(T=4096, heads=(4, 2, 2), p=p, dtype=dtype, gates="resets", aligned=True)
    whole, halves = run(problem, "triton"), run_in_halves(problem, 2, use_triton=True)
    for name, exact in run(problem.double(), "chunked").items():
        if name not in halves:
            continue
        errors = [norms(found[name].double() - exact) for found in (halves, whole)]
        for ours, theirs, size in zip(*errors, norms(exact), strict=True):
            assert ours <= 1.5 * theirs + 3e-5 * size, name
