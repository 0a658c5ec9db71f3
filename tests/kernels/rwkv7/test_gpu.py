"""On a GPU: fla-core's kernels and the chunked form by the error law, whole graphs, and who is chosen.

The first call of fla-core's kernels with other widths or dtypes searches for block sizes, which takes minutes; here it
searches among two.
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.errors import InputError
from zoo.kernels.rwkv7 import chunked, fla, op, rwkv7
from zoo.kernels.rwkv7.call import Options
from zoo.mixers import LayerContext, mixers
from zoo.mixers.rwkv7 import Rwkv7Config

from .plain import run_in_chunks
from .problems import DIGITS, TOKENS, Problem, check_error_law, random_problem, run, scale

needs_fla = pytest.mark.skipif(bool(fla.MISSING), reason=fla.MISSING)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # those of other packages
]
FLOOR = -0.607
KERNELS = (
    "rwkv6.chunk", "generalized_delta_rule.dplr.chunk_A_fwd", "generalized_delta_rule.dplr.wy_fast_fwd",
    "generalized_delta_rule.dplr.chunk_h_fwd", "generalized_delta_rule.dplr.chunk_o_fwd",
    "generalized_delta_rule.dplr.chunk_o_bwd", "generalized_delta_rule.dplr.chunk_h_bwd",
    "generalized_delta_rule.dplr.wy_fast_bwd", "generalized_delta_rule.dplr.chunk_A_bwd",
)  # fmt: skip


def make_problem(
    T: int, *, B: int = 1, H: int = 12, N: int = 64, dtype: torch.dtype = torch.bfloat16, state: bool = True,
    seed: int = 0,
) -> Problem:  # fmt: skip
    problem = random_problem(B, T, H, N, dtype=dtype, seed=seed).map(lambda x: x.cuda())
    return problem if state else replace(problem, S=None, dS=None)


def tokens_of(problem: Problem) -> list[Tensor]:
    return [getattr(problem, name).detach().requires_grad_() for name in TOKENS]


def check_fla(problem: Problem) -> None:
    """Assert the error law against the float64 recurrence, beside plain PyTorch in the same dtype."""
    exact, plain = run(problem.double(), "recurrent"), run_in_chunks(problem)
    ours = run(problem, "fla", log_w_floor=FLOOR)
    broken = []
    for name, reference in exact.items():
        error, allowed = (float((x[name].double() - reference).norm()) for x in (ours, plain))
        tiny = DIGITS[torch.float32] * scale(problem, name, reference)
        if not error <= 1.5 * allowed + tiny:
            broken.append(f"{name}: {error:.2e}, plain {allowed:.2e} (x{error / max(allowed, 1e-300):.2f})")
    assert not broken, "; ".join(broken)


@pytest.fixture(autouse=True)
def _few_block_sizes() -> Iterator[None]:
    """Search among two block sizes a kernel rather than up to sixty."""
    if fla.MISSING:
        yield
        return
    before = []
    for name in KERNELS:
        for kernel in vars(import_module(f"fla.ops.{name}")).values():
            while kernel is not None and not hasattr(kernel, "configs"):
                kernel = None if isinstance(kernel, ModuleType) else getattr(kernel, "fn", None)
            if kernel is not None:
                before.append((kernel, kernel.configs))
                kernel.configs = kernel.configs[:2]
    yield
    for kernel, configs in before:
        kernel.configs = configs


@needs_fla
@pytest.mark.parametrize("T", [1, 15, 16, 17, 64, 65, 1000, 2049])
def test_error_law_over_lengths(T: int) -> None:
    check_fla(make_problem(T, B=max(1, 256 // T)))


@needs_fla
def test_error_law_without_a_state() -> None:
    check_fla(make_problem(300, B=3, state=False))


@needs_fla
@pytest.mark.parametrize("used", ["do", "dS"])
def test_error_law_with_one_result_used(used: str) -> None:
    unused = "dS" if used == "do" else "do"
    check_fla(replace(make_problem(200), **{unused: None}))


@needs_fla
def test_no_tokens() -> None:
    problem = make_problem(0)
    found = run(problem, "fla", log_w_floor=FLOOR)
    assert found["o"].shape == problem.r.shape
    assert torch.equal(found["S_out"], problem.S)
    assert torch.equal(found["dS"], problem.dS)


@needs_fla
@pytest.mark.parametrize("N", [16, 32, 128])
def test_error_law_over_widths(N: int) -> None:
    check_fla(make_problem(300, H=2, N=N))


@needs_fla
def test_a_sequence_in_pieces() -> None:
    """The state passed on between them; fla-core's and the chunked form take turns."""
    problem = make_problem(1000)
    whole = rwkv7(*tokens_of(problem), state=problem.S, return_state=True, log_w_floor=FLOOR, impl="fla")
    state, outputs = problem.S, []
    for i, (start, stop) in enumerate([(0, 300), (300, 301), (301, 900), (900, 1000)]):
        part = tokens_of(problem.tokens(start, stop))
        impl: Any = "chunked" if i == 2 else "fla"
        o, state = rwkv7(*part, state=state, return_state=True, log_w_floor=FLOOR, impl=impl)
        outputs.append(o)
    assert state is not None
    assert whole.state is not None
    for x, y in ((torch.cat(outputs, 1), whole.o), (state, whole.state)):
        assert (x.double() - y).norm() < 0.01 * y.double().norm()


@needs_fla
def test_layouts_and_lengths() -> None:
    problem = make_problem(200, B=2)
    heads_first = problem.map(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))
    first, second = (run(each, "fla", log_w_floor=FLOOR) for each in (problem, heads_first))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    padded = run(replace(problem, lengths=torch.tensor([200, 50])), "fla", log_w_floor=FLOOR)
    alone = run(problem.row(1).tokens(0, 50), "fla", log_w_floor=FLOOR)
    assert not padded["o"][1, 50:].any()
    for name in ("S_out", "dS"):
        torch.testing.assert_close(padded[name][1:], alone[name], rtol=1e-2, atol=1e-2)


@needs_fla
@pytest.mark.parametrize("with_state", [True, False])
def test_opcheck(with_state: bool) -> None:
    problem = make_problem(70)
    state = problem.S.requires_grad_() if with_state and problem.S is not None else None
    options = Options(use_fla=True, chunk_size=64)
    torch.library.opcheck(torch.ops.zoo.rwkv7, (*tokens_of(problem), state, *options))


@needs_fla
def test_one_graph_for_all_lengths() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")

    def mix(*tokens: Tensor) -> Tensor:
        return rwkv7(*tokens, log_w_floor=FLOOR, impl="fla").o

    compiled = torch.compile(mix, backend=counter, fullgraph=True)
    for T in (33, 64, 1000, 2049):
        tokens = tokens_of(make_problem(T))
        ours, theirs = (torch.autograd.grad(run(*tokens).float().square().sum(), tokens) for run in (compiled, mix))
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
    assert counter.frame_count <= 2


@needs_fla
def test_recorded_graphs_give_the_same_bits() -> None:
    torch._dynamo.reset()
    tokens = tokens_of(make_problem(500))

    def mix(*tokens: Tensor) -> Tensor:
        return rwkv7(*tokens, log_w_floor=FLOOR, impl="fla").o

    recorded = torch.compile(mix, mode="reduce-overhead", fullgraph=True)
    expected = torch.autograd.grad(mix(*tokens).float().sum(), tokens)
    for _ in range(4):  # warmed up, recorded, replayed
        torch.compiler.cudagraph_mark_step_begin()
        found = torch.autograd.grad(recorded(*tokens).float().sum(), tokens)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@needs_fla
def test_autocast_changes_nothing() -> None:
    tokens = tokens_of(make_problem(100))
    o, _ = rwkv7(*tokens, log_w_floor=FLOOR, impl="fla")
    with torch.autocast("cuda", dtype=torch.float16):
        o_under, _ = rwkv7(*tokens, log_w_floor=FLOOR, impl="fla")
        found = torch.autograd.grad(o_under.float().sum(), tokens)
    assert torch.equal(o, o_under)
    expected = torch.autograd.grad(o.float().sum(), tokens)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@needs_fla
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_mixer_takes_it_where_it_fits(dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    runs: dict[str, int] = {"fla": 0, "chunked": 0}
    for name, module in (("fla", fla), ("chunked", chunked)):
        forward = module.forward

        def counted(*arguments: Any, name: str = name, forward: Any = forward) -> Any:
            runs[name] += 1
            return forward(*arguments)

        monkeypatch.setattr(module, "forward", counted)
    context = LayerContext(width=768, heads=12, key_value_heads=12, head_width=64, layer=0, layers=2)
    mixer = mixers["rwkv7"].build(Rwkv7Config(), context).cuda().to(dtype)
    mix: Any = torch.compile(mixer, fullgraph=True) if compiled else mixer
    y, _ = mix(torch.randn(1, 100, 768, device="cuda", dtype=dtype))
    y.float().sum().backward()
    assert runs == ({"fla": 1, "chunked": 0} if dtype == torch.bfloat16 else {"fla": 0, "chunked": 1})


def test_by_hand_it_is_never_replaced() -> None:
    tokens = tokens_of(make_problem(20, dtype=torch.float32))
    with pytest.raises(InputError, match="impl"):
        rwkv7(*tokens, log_w_floor=FLOOR, impl="fla")


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
    o, _, _ = op.mix(*tokens, None, *Options(use_fla=False, chunk_size=0))
    torch.autograd.grad(o, tokens, do)
    assert torch.cuda.max_memory_allocated() - before < 8 * 2**30
