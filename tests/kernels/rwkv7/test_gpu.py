"""On a GPU: Triton's kernels and the chunked form by the error law, whole graphs, and who is chosen."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.errors import InputError
from zoo.kernels.rwkv7 import chunked, op, rwkv7
from zoo.kernels.rwkv7.call import Options
from zoo.mixers import LayerContext, mixers
from zoo.mixers.rwkv7 import Rwkv7Config

from .plain import run_in_chunks
from .problems import DIGITS, TOKENS, Problem, check_error_law, random_problem, run, scale

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
FLOOR = -0.607


def make_problem(
    T: int, *, B: int = 1, H: int = 12, N: int = 64, dtype: torch.dtype = torch.bfloat16, state: bool = True,
    seed: int = 0,
) -> Problem:  # fmt: skip
    problem = random_problem(B, T, H, N, dtype=dtype, seed=seed).map(lambda x: x.cuda())
    return problem if state else replace(problem, S=None, dS=None)


def tokens_of(problem: Problem) -> list[Tensor]:
    return [getattr(problem, name).detach().requires_grad_() for name in TOKENS]


def check_kernels(problem: Problem, floor: float = FLOOR) -> None:
    """Assert the error law against the float64 recurrence, beside plain PyTorch in the same dtype."""
    exact, ours = run(problem.double(), "recurrent"), run(problem, "triton", log_w_floor=floor)
    plain = run(problem, "recurrent") if problem.r.dtype == torch.float32 else run_in_chunks(problem)
    broken = []
    for name, reference in exact.items():
        error, allowed = (float((x[name].double() - reference).norm()) for x in (ours, plain))
        tiny = DIGITS[torch.float32] * scale(problem, name, reference)
        if not error <= 1.5 * allowed + tiny:
            broken.append(f"{name}: {error:.2e}, plain {allowed:.2e} (x{error / max(allowed, 1e-300):.2f})")
    assert not broken, "; ".join(broken)


@pytest.mark.parametrize("T", [1, 15, 16, 17, 64, 65, 1000, 2049])
def test_error_law_over_lengths(T: int) -> None:
    check_kernels(make_problem(T, B=max(1, 256 // T)))


def test_error_law_without_a_state() -> None:
    check_kernels(make_problem(300, B=3, state=False))


@pytest.mark.parametrize("used", ["do", "dS"])
def test_error_law_with_one_result_used(used: str) -> None:
    unused = "dS" if used == "do" else "do"
    check_kernels(replace(make_problem(200), **{unused: None}))


def test_no_tokens() -> None:
    problem = make_problem(0)
    found = run(problem, "triton", log_w_floor=FLOOR)
    assert found["o"].shape == problem.r.shape
    assert torch.equal(found["S_out"], problem.S)
    assert torch.equal(found["dS"], problem.dS)


@pytest.mark.parametrize("N", [16, 20, 32, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_error_law_over_widths(N: int, dtype: torch.dtype) -> None:
    check_kernels(make_problem(300, H=2, N=N, dtype=dtype))


@pytest.mark.parametrize("decays", ["none", "mild", "strong", "infinite", "mixed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_error_law_whatever_the_decays(decays: str, dtype: torch.dtype) -> None:
    problem = random_problem(1, 300, 4, 64, decays, torch.float32)
    finite = problem.log_w.clamp(min=-100)  # the plain form subtracts them
    problem = replace(problem.map(lambda x: x.cuda()), log_w=finite.cuda())
    narrow = ("r", "k", "v", "kappa", "a", "do")
    problem = replace(problem, **{name: getattr(problem, name).to(dtype) for name in narrow})
    check_kernels(problem, -torch.inf)


@pytest.mark.parametrize("floor", [FLOOR, -torch.inf])
def test_packed_documents_are_sequences_with_resets(floor: float) -> None:
    problem = make_problem(1000)
    resets = torch.zeros(1, 1000, dtype=torch.bool, device="cuda")
    resets[:, [0, 17, 300, 301]] = True
    whole = run(replace(problem, resets=resets, dS=None), "triton", log_w_floor=floor)
    for start, stop in ((0, 17), (17, 300), (301, 1000)):
        alone = run(replace(problem.tokens(start, stop), S=None, dS=None), "triton", log_w_floor=floor)
        for name in ("o", "dr", "dk", "dv"):
            x, y = whole[name][:, start:stop].double(), alone[name].double()
            assert (x - y).norm() <= 1e-2 * y.norm(), name


def test_other_lengths_compile_nothing() -> None:
    """Whether they are in groups or not, kernels are there after one call."""
    from zoo.kernels import launch

    run(make_problem(100), "triton", log_w_floor=FLOOR)
    run(make_problem(5000), "triton", log_w_floor=FLOOR)
    before = len(launch._compiled)
    for T in (101, 4999, 3000):
        run(make_problem(T), "triton", log_w_floor=FLOOR)
    assert len(launch._compiled) == before


def test_a_sequence_in_pieces() -> None:
    """The state passed on between them; the kernels and the chunked form take turns."""
    problem = make_problem(1000)
    whole = rwkv7(*tokens_of(problem), state=problem.S, return_state=True, log_w_floor=FLOOR, impl="triton")
    state, outputs = problem.S, []
    for i, (start, stop) in enumerate([(0, 300), (300, 301), (301, 900), (900, 1000)]):
        part = tokens_of(problem.tokens(start, stop))
        impl: Any = "chunked" if i == 2 else "triton"
        o, state = rwkv7(*part, state=state, return_state=True, log_w_floor=FLOOR, impl=impl)
        outputs.append(o)
    assert state is not None
    assert whole.state is not None
    for x, y in ((torch.cat(outputs, 1), whole.o), (state, whole.state)):
        assert (x.double() - y).norm() < 0.01 * y.double().norm()


def test_layouts_and_lengths() -> None:
    problem = make_problem(200, B=2)
    heads_first = problem.map(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))
    first, second = (run(each, "triton", log_w_floor=FLOOR) for each in (problem, heads_first))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    padded = run(replace(problem, lengths=torch.tensor([200, 50])), "triton", log_w_floor=FLOOR)
    alone = run(problem.row(1).tokens(0, 50), "triton", log_w_floor=FLOOR)
    assert not padded["o"][1, 50:].any()
    for name in ("S_out", "dS"):
        torch.testing.assert_close(padded[name][1:], alone[name], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("with_state", [True, False])
def test_opcheck(with_state: bool) -> None:
    problem = make_problem(70)
    state = problem.S.requires_grad_() if with_state and problem.S is not None else None
    options = Options(use_triton=True, chunk_size=0, base=32)
    torch.library.opcheck(torch.ops.zoo.rwkv7, (*tokens_of(problem), state, *options))


def test_one_graph_for_all_lengths() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")

    def mix(*tokens: Tensor) -> Tensor:
        return rwkv7(*tokens, log_w_floor=FLOOR, impl="triton").o

    compiled = torch.compile(mix, backend=counter, fullgraph=True)
    for T in (33, 64, 1000, 2049):
        tokens = tokens_of(make_problem(T))
        ours, theirs = (torch.autograd.grad(run(*tokens).float().square().sum(), tokens) for run in (compiled, mix))
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
    assert counter.frame_count <= 2


def test_recorded_graphs_give_the_same_bits() -> None:
    torch._dynamo.reset()
    tokens = tokens_of(make_problem(500))

    def mix(*tokens: Tensor) -> Tensor:
        return rwkv7(*tokens, log_w_floor=FLOOR, impl="triton").o

    recorded = torch.compile(mix, mode="reduce-overhead", fullgraph=True)
    expected = torch.autograd.grad(mix(*tokens).float().sum(), tokens)
    for _ in range(4):  # warmed up, recorded, replayed
        torch.compiler.cudagraph_mark_step_begin()
        found = torch.autograd.grad(recorded(*tokens).float().sum(), tokens)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_autocast_changes_nothing() -> None:
    tokens = tokens_of(make_problem(100))
    o, _ = rwkv7(*tokens, log_w_floor=FLOOR, impl="triton")
    with torch.autocast("cuda", dtype=torch.float16):
        o_under, _ = rwkv7(*tokens, log_w_floor=FLOOR, impl="triton")
        found = torch.autograd.grad(o_under.float().sum(), tokens)
    assert torch.equal(o, o_under)
    expected = torch.autograd.grad(o.float().sum(), tokens)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_mixer_takes_the_kernels(dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    runs: dict[str, int] = {"triton": 0, "chunked": 0}
    for name, module, forward in (
        ("triton", op, op.triton_forward), ("chunked", chunked, chunked.forward)
    ):  # fmt: skip

        def counted(*arguments: Any, name: str = name, forward: Any = forward) -> Any:
            runs[name] += 1
            return forward(*arguments)

        monkeypatch.setattr(module, "triton_forward" if name == "triton" else "forward", counted)
    context = LayerContext(width=768, heads=12, key_value_heads=12, head_width=64, layer=0, layers=2)
    mixer = mixers["rwkv7"].build(Rwkv7Config(), context).cuda().to(dtype)
    mix: Any = torch.compile(mixer, fullgraph=True) if compiled else mixer
    y, _ = mix(torch.randn(1, 100, 768, device="cuda", dtype=dtype))
    y.float().sum().backward()
    assert runs == {"triton": 1, "chunked": 0}


def test_by_hand_it_is_never_replaced() -> None:
    tokens = tokens_of(make_problem(20, dtype=torch.float64))
    with pytest.raises(InputError, match="impl"):
        rwkv7(*tokens, log_w_floor=FLOOR, impl="triton")


@pytest.mark.parametrize("decays", ["none", "mild", "strong", "infinite", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_law_of_the_chunked_form(decays: str, dtype: torch.dtype) -> None:
    """More than one segment of a GPU's."""
    problem = random_problem(1, 2200, 4, 64, decays, dtype).map(lambda x: x.cuda())
    check_error_law(problem, "chunked")


def test_memory_of_the_chunked_form() -> None:
    """At 65,536 tokens and 12 heads, forward and backward: a few times the inputs and their gradients."""
    tokens = tokens_of(make_problem(65536, state=False))
    do = torch.randn_like(tokens[0])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    o, *_ = op.mix(*tokens, None, *Options(use_triton=False, chunk_size=0))
    torch.autograd.grad(o, tokens, do)
    assert torch.cuda.max_memory_allocated() - before < 8 * 2**30
