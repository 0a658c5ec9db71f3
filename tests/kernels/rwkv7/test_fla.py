"""fla-core's kernels as an implementation: what is asked of them, with a stand-in that runs anywhere.

The stand-in does by a loop over tokens what fla-core's documentation says of its function, in float32.
"""

import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.errors import InputError
from zoo.kernels.rwkv7 import fla, op, rwkv7
from zoo.kernels.rwkv7.call import Options
from zoo.mixers import rwkv7 as mixer

from .problems import TOKENS, Problem, Tensors, check_same, differentiate, random_problem, run

NOT_THERE = "needs the package fla-core, which is not installed: pip install 'mixer-zoo[fla]'"
FLOOR = -0.607


class _Function:
    """`S_t = diag(w_t) S_{t-1} + y_t (x_t^T S_{t-1}) + k_t v_t^T`, as fla-core's autograd function takes it."""

    @staticmethod
    def _run(
        r: Tensor, k: Tensor, v: Tensor, x: Tensor, y: Tensor, log_w: Tensor, S: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert all(each.is_contiguous() for each in (r, k, v, x, y, log_w))
        B, T, H, N = r.shape
        state = r.new_zeros(B, H, N, N, dtype=torch.float32) if S is None else S
        outputs = []
        for t in range(T):
            held = torch.einsum("bhk,bhkv->bhv", x[:, t].float(), state)
            state = log_w[:, t, :, :, None].exp() * state + y[:, t, :, :, None] * held[:, :, None]
            state = state + k[:, t, :, :, None] * v[:, t, :, None]
            outputs.append(torch.einsum("bhk,bhkv->bhv", r[:, t].float(), state))
        return torch.stack(outputs, 1).to(r.dtype), state

    @staticmethod
    def forward(
        context: Any, *tokens: Tensor, scale: float, initial_state: Tensor | None, output_final_state: bool,
        safe_gate: bool, chunk_size: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert (scale, output_final_state, safe_gate) == (1.0, True, True)
        assert chunk_size in (16, 32, 64)
        context.save_for_backward(*tokens, initial_state)
        with torch.no_grad():
            return _Function._run(*tokens, initial_state)

    @staticmethod
    def backward(context: Any, do: Tensor, dS: Tensor | None) -> tuple[Any, ...]:
        *tokens, S = (None if x is None else x.detach().requires_grad_() for x in context.saved_tensors)
        assert (context.scale, context.safe_gate, context.cu_seqlens) == (1.0, True, None)
        leaves = [*tokens, *([] if S is None else [S])]

        def differentiate() -> tuple[Tensor, ...]:
            o, after = _Function._run(*tokens, S)
            sources = {o: do} if dS is None else {o: do, after: dS}
            return torch.autograd.grad(list(sources), leaves, list(sources.values()), materialize_grads=True)

        # Within an op's body there is no autograd, but that holds for its thread only.
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(differentiate).result()
        return *found[:6], None, None if S is None else found[6], *[None] * 8


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    name = "fla.ops.generalized_delta_rule.dplr.chunk"
    module = ModuleType(name)
    module.ChunkDPLRDeltaRuleFunction = _Function  # type: ignore[attr-defined]
    for parent in (name.rsplit(".", count)[0] for count in range(1, 5)):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(fla, "MISSING", "")
    yield
    torch._dynamo.reset()


def run_fla(problem: Problem) -> Tensors:
    """Results and gradients through the op, whatever the device."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    given = replace(problem, **leaves)
    o, S, _ = op.mix(*(getattr(given, name) for name in TOKENS), given.S, *Options(use_fla=True, chunk_size=64))
    return differentiate(problem, {"o": o, "S_out": S}, leaves)


@pytest.mark.parametrize("T", [0, 1, 15, 16, 40])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.usefixtures("_stand_in")
def test_results_and_gradients_are_those_of_the_recurrence(T: int, state: bool) -> None:
    problem = random_problem(2, T, 3, 16)
    problem = problem if state else replace(problem, S=None, dS=None)
    check_same(problem, run_fla(problem), run(problem, "recurrent"))


@pytest.mark.usefixtures("_stand_in")
def test_any_layout() -> None:
    problem = random_problem(2, 20, 3, 16)
    heads_first = problem.map(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))
    check_same(problem, run_fla(heads_first), run(problem, "recurrent"))


@pytest.mark.parametrize("T", [0, 5, 20])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.usefixtures("_stand_in")
def test_opcheck(T: int, with_state: bool) -> None:
    problem = random_problem(2, T, 2, 16)
    tokens = [getattr(problem, name).requires_grad_() for name in TOKENS]
    state = problem.S.requires_grad_() if with_state and problem.S is not None else None
    options = Options(use_fla=True, chunk_size=64)
    torch.library.opcheck(torch.ops.zoo.rwkv7, (*tokens, state, *options))


@pytest.mark.usefixtures("_stand_in")
def test_one_graph_for_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla, "misfit", lambda *_: "")  # as on a GPU
    counter = CompileCounterWithBackend("aot_eager")

    def mix(*tokens: Tensor) -> Tensor:
        return rwkv7(*tokens, log_w_floor=FLOOR, impl="fla").o

    compiled = torch.compile(mix, backend=counter, fullgraph=True)
    for T in (2, 20, 30, 65):
        problem = random_problem(1, T, 2, 16)
        tokens = [getattr(problem, name).requires_grad_() for name in TOKENS]
        ours, theirs = (torch.autograd.grad(run(*tokens).square().sum(), tokens) for run in (compiled, mix))
        torch.testing.assert_close(ours, theirs)
    assert counter.frame_count <= 2


@pytest.mark.usefixtures("_stand_in")
def test_what_does_not_fit_is_chunked_by_default_also_when_compiled() -> None:
    problem = random_problem(1, 30, 2, 16)
    tokens = [getattr(problem, name) for name in TOKENS]
    mix = torch.compile(lambda *x: rwkv7(*x, log_w_floor=FLOOR).o, backend="eager", fullgraph=True)
    assert torch.equal(mix(*tokens), rwkv7(*tokens, impl="chunked").o)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla, "MISSING", NOT_THERE)
    problem = random_problem(1, 3, 1, 16)
    with pytest.raises(InputError) as caught:
        rwkv7(*(getattr(problem, name) for name in TOKENS), impl="fla")
    assert str(caught.value) == f"impl: 'fla' {NOT_THERE}"


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({}, NOT_THERE),
        ({"fla-core": "0.5.1"}, "needs fla-core 0.6.0, 0.5.1 is installed: pip install 'mixer-zoo[fla]'"),
        ({"fla-core": "0.6.0"}, "needs the package triton, which is not installed"),
    ],
)
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], expected: str) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise fla.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(fla.importlib.metadata, "version", version)
    monkeypatch.setattr(fla.importlib.util, "find_spec", lambda _: None)
    assert fla._missing() == expected


def _like(**changes: Any) -> Any:
    """r on a GPU, as far as `misfit` looks at it."""
    good = {"is_cuda": True, "dtype": torch.bfloat16, "shape": (2, 3, 4, 64), "device": "cuda:0"}
    return SimpleNamespace(**(good | changes))


@pytest.mark.parametrize(
    ("changes", "floor", "resets", "expected"),
    [
        ({}, FLOOR, False, ""),
        ({"shape": (1, 1, 1, 16)}, -0.5, False, ""),
        ({"is_cuda": False, "device": "cpu"}, FLOOR, False, "impl: 'fla' needs tensors on a GPU, r was on cpu"),
        ({"dtype": torch.float16}, FLOOR, False, "r: impl='fla' takes bfloat16, was torch.float16"),
        ({"shape": (1, 1, 1, 24)}, FLOOR, False, "r: impl='fla' takes heads of 16, 32, 64 or 128 channels, was 24"),
        ({}, FLOOR, True, "resets: impl='fla' takes none, as its decays are never 0"),
        (
            {},
            -0.7,
            False,
            "log_w_floor: impl='fla' needs log decays known to be at least -0.607, was -0.7",
        ),
    ],
)  # fmt: skip
def test_misfits_are_named(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], floor: float, resets: bool, expected: str
) -> None:
    monkeypatch.setattr(fla, "MISSING", "")
    found = fla.misfit(_like(**changes), floor, torch.ones(2, 3, dtype=torch.bool) if resets else None)
    assert found == (f"{expected}; impl='chunked' runs anywhere" if expected else "")


def test_the_mixers_own_decays_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla, "MISSING", "")
    assert fla.misfit(_like(), mixer._LOG_W_FLOOR, None) == ""


@pytest.mark.parametrize(("chunk_size", "expected"), [(None, 64), (1, 16), (20, 16), (32, 32), (1000, 64)])
def test_chunks_are_no_longer_than_asked_for(chunk_size: int | None, expected: int) -> None:
    assert fla.resolve_chunk_size(chunk_size) == expected


@pytest.mark.usefixtures("_stand_in")
def test_gradients_of_the_last_state_alone_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = replace(random_problem(2, 40, 3, 16), do=None)
    monkeypatch.setattr(fla, "backward", None)
    check_same(problem, run_fla(problem), run(problem, "recurrent"))


@pytest.mark.parametrize("floor", [0.5, math.nan])
def test_a_floor_that_is_none_is_named(floor: float) -> None:
    problem = random_problem(1, 3, 1, 4)
    with pytest.raises(InputError, match=f"^log_w_floor: expected a log decay of at most 0, was {floor}$"):
        rwkv7(*(getattr(problem, name) for name in TOKENS), log_w_floor=floor)


def test_decays_below_the_floor_are_named() -> None:
    problem = random_problem(1, 3, 1, 4)
    problem.log_w[0, 1] = -0.75
    tokens = [getattr(problem, name) for name in TOKENS]
    with pytest.raises(InputError, match=r"^log_w: expected log decays of at least log_w_floor=-0\.607, found -0\.75$"):
        rwkv7(*tokens, log_w_floor=FLOOR)
    resets = torch.zeros(1, 3, dtype=torch.bool)
    rwkv7(*tokens, log_w_floor=-0.75, resets=~resets)  # which forget more than any decay
