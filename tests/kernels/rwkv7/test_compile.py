"""RWKV-7's time mixing under the compiler: whole graphs, at most one recompile over lengths, export."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.kernels.rwkv7 import init_rwkv7_state, rwkv7, rwkv7_step


class Layer(nn.Module):
    """Projections around the op, so that there is something to trace and to fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(5, 6 * 8)

    def inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        r, w, k, v, kappa, a = self.project(x).unflatten(-1, (6, 2, 4)).unbind(-3)
        return r, -0.607 * w.float().sigmoid(), k, v, nn.functional.normalize(kappa, dim=-1), a.sigmoid()

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        o, state = rwkv7(*self.inputs(x), state=state, return_state=True)
        assert state is not None
        return o.flatten(-2), state

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return rwkv7_step(*self.inputs(x), state=state).flatten(-2)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def loss_and_gradients(model: Any, layer: Layer, x: Tensor) -> list[Tensor]:
    o, state = model(x)
    return [o, state, *torch.autograd.grad(o.square().sum() + state.sum(), list(layer.parameters()))]


def test_one_recompile_over_lengths() -> None:
    layer, counter = Layer(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for T in (2, 7, 64, 65, 128, 300, 600):
        x = torch.randn(2, T, 5)
        torch.testing.assert_close(loss_and_gradients(compiled, layer, x), loss_and_gradients(layer, layer, x))
    assert counter.frame_count <= 2


def test_no_recompile_over_lengths_that_are_marked() -> None:
    layer, counter = Layer(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for T in (5, 64, 300):
        x = torch.randn(2, T, 5)
        torch._dynamo.mark_dynamic(x, 1)
        loss_and_gradients(compiled, layer, x)
    assert counter.frame_count == 1


def test_prefill_continues_from_a_state_without_recompiling() -> None:
    layer, counter = Layer(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    whole = torch.randn(2, 40, 5)
    expected, _ = layer(whole)
    state, outputs = init_rwkv7_state(2, 2, 4), []
    for x in whole.split((10, 13, 17), dim=1):
        o, state = compiled(x, state.detach())
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), expected)
    assert counter.frame_count <= 2


def test_compiled_step_writes_the_state_in_place() -> None:
    layer, counter = Layer(), CompileCounterWithBackend("aot_eager")
    step = torch.compile(layer.step, backend=counter, fullgraph=True)
    ours, theirs = (init_rwkv7_state(2, 2, 4) for _ in range(2))
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(2, 5)
            torch.testing.assert_close(step(x, ours), layer.step(x, theirs))
    torch.testing.assert_close(ours, theirs)
    assert counter.frame_count == 1


def test_inductor() -> None:
    """Forward and backward through generated code."""
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for T in (33, 70):
        x = torch.randn(2, T, 5)
        ours, theirs = loss_and_gradients(compiled, layer, x), loss_and_gradients(layer, layer, x)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)  # sums over tokens in another order


def test_resets_and_lengths_compile() -> None:
    layer, counter = Layer(), CompileCounterWithBackend("aot_eager")

    def mix(x: Tensor, resets: Tensor, lengths: Tensor) -> Tensor:
        return rwkv7(*layer.inputs(x), resets=resets, lengths=lengths).o

    compiled = torch.compile(mix, backend=counter, fullgraph=True)
    for T in (9, 20, 33):
        arguments = (torch.randn(3, T, 5), torch.rand(3, T) < 0.2, torch.tensor([T, 0, T // 2]))
        torch.testing.assert_close(compiled(*arguments), mix(*arguments))
    assert counter.frame_count <= 2


def test_export_keeps_the_op_and_any_length() -> None:
    layer = Layer().eval()
    tokens = torch.export.Dim("tokens", min=2)
    exported = torch.export.export(layer, (torch.randn(2, 12, 5),), dynamic_shapes={"x": {1: tokens}})
    targets = [str(node.target) for node in exported.graph.nodes]
    assert targets.count("zoo.rwkv7.default") == 1
    x = torch.randn(2, 300, 5)
    torch.testing.assert_close(exported.module()(x), layer(x))
