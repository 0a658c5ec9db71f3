"""The delta rule under the compiler: whole graphs, at most one recompile over lengths, export."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.kernels.delta import delta_attention, delta_attention_step, init_delta_state


class Layer(nn.Module):
    """Projections around the op, so that there is something to trace and to fuse."""

    def __init__(self, p: int = 1, *, channels: bool = False) -> None:
        super().__init__()
        self.p, self.channels = p, channels
        self.project = nn.Linear(5, 4 + 4 + 2 * 3 + 2 * 4 + 2)

    def inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v, g, beta = self.project(x).split((4, 4, 6, 8, 2), dim=-1)
        q, k = (F.normalize(y, dim=-1).unsqueeze(-2) for y in (q, k))
        log_g = F.logsigmoid(g.float().unflatten(-1, (2, 4)))
        return q, k, v.unflatten(-1, (2, 3)), log_g if self.channels else log_g[..., 0], beta.sigmoid()

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        o, state = delta_attention(*self.inputs(x), p=self.p, state=state, return_state=True)
        assert state is not None
        return o.flatten(-2), state

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return delta_attention_step(*self.inputs(x), p=self.p, state=state).flatten(-2)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def loss_and_gradients(model: Any, layer: Layer, x: Tensor) -> list[Tensor]:
    o, state = model(x)
    return [o, state, *torch.autograd.grad(o.square().sum() + state.sum(), list(layer.parameters()))]


def test_no_recompile_over_lengths_that_are_marked() -> None:
    layer, counter = Layer(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for T in (5, 64, 300):
        x = torch.randn(2, T, 5)
        torch._dynamo.mark_dynamic(x, 1)
        ours, theirs = loss_and_gradients(compiled, layer, x), loss_and_gradients(layer, layer, x)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)  # sums over tokens in another order
    assert counter.frame_count == 1


@pytest.mark.parametrize("channels", [False, True])
def test_one_recompile_over_lengths(channels: bool) -> None:
    """From prompt to prompt, each from the state that the one before it left."""
    layer, counter = Layer(channels=channels), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    whole = torch.randn(2, 240, 5)
    expected, _ = layer(whole)
    state, outputs = init_delta_state(2, 2, 4, 3), []
    for x in whole.split((2, 7, 64, 65, 102), dim=1):
        o, state = compiled(x, state.detach())
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), expected)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("p", [1, 2])
def test_compiled_step_writes_the_state_in_place(p: int) -> None:
    layer, counter = Layer(p), CompileCounterWithBackend("aot_eager")
    step = torch.compile(layer.step, backend=counter, fullgraph=True)
    ours, theirs = (init_delta_state(2, 2, 4, 3, p) for _ in range(2))
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(2, 5)
            torch.testing.assert_close(step(x, ours), layer.step(x, theirs))
    torch.testing.assert_close(ours, theirs)
    assert counter.frame_count == 1


def test_inductor() -> None:
    """Forward and backward through generated code."""
    layer = Layer(p=2)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for T in (33, 70):
        x = torch.randn(2, T, 5)
        ours, theirs = loss_and_gradients(compiled, layer, x), loss_and_gradients(layer, layer, x)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)  # sums over tokens in another order


def test_packed_sequences_resets_and_lengths_compile() -> None:
    layer, counter = Layer(), CompileCounterWithBackend("aot_eager")

    def attend(x: Tensor, resets: Tensor, **options: Any) -> Tensor:
        return delta_attention(*layer.inputs(x), resets=resets, **options).o

    compiled = torch.compile(attend, backend=counter, fullgraph=True)
    for T in (9, 20, 33):
        x, resets = torch.randn(1, T, 5), torch.rand(1, T) < 0.2
        for options in ({"cu_seqlens": torch.tensor([0, T // 2, T])}, {"lengths": torch.tensor([T - 1])}):
            torch.testing.assert_close(compiled(x, resets, **options), attend(x, resets, **options))
    assert counter.frame_count <= 4


def test_export_keeps_the_op_and_any_length() -> None:
    layer = Layer().eval()
    tokens = torch.export.Dim("tokens", min=2)
    exported = torch.export.export(layer, (torch.randn(2, 12, 5),), dynamic_shapes={"x": {1: tokens}})
    targets = [str(node.target) for node in exported.graph.nodes]
    assert targets.count("zoo.delta_attention.default") == 1
    x = torch.randn(2, 300, 5)
    torch.testing.assert_close(exported.module()(x), layer(x))
