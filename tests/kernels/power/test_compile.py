"""Power attention under the compiler: whole graphs, at most one recompile over lengths, export."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.kernels.power import PowerState, init_power_state, power_attention, power_attention_step


class Layer(nn.Module):
    """Projections around the op, so that there is something to trace and to fuse."""

    def __init__(self, p: int = 2) -> None:
        super().__init__()
        self.p = p
        self.project = nn.Linear(8, 4 * 4 + 2 * 4 + 2 * 4 + 2)

    def qkvg(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v, gates = self.project(x).split((16, 8, 8, 2), dim=-1)
        q, k, v = (y.unflatten(-1, (-1, 4)) for y in (q, k, v))
        return q, k, v, nn.functional.logsigmoid(gates.float())

    def forward(self, x: Tensor, state: PowerState | None = None) -> tuple[Tensor, PowerState]:
        o, state = power_attention(*self.qkvg(x), p=self.p, state=state, return_state=True)
        assert state is not None
        return o.flatten(-2), state

    def step(self, x: Tensor, state: PowerState) -> Tensor:
        return power_attention_step(*self.qkvg(x), p=self.p, state=state).flatten(-2)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def loss_and_gradients(model: Any, layer: Layer, x: Tensor) -> list[Tensor]:
    o, state = model(x)
    return [o, *state, *torch.autograd.grad(o.square().sum() + state.S.sum(), list(layer.parameters()))]


def test_one_recompile_over_lengths() -> None:
    layer, counter = Layer(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for T in (2, 7, 64, 65, 128, 300):
        x = torch.randn(2, T, 8)
        torch.testing.assert_close(loss_and_gradients(compiled, layer, x), loss_and_gradients(layer, layer, x))
    assert counter.frame_count <= 2


def test_no_recompile_over_lengths_that_are_marked() -> None:
    layer, counter = Layer(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for T in (5, 64, 300):
        x = torch.randn(2, T, 8)
        torch._dynamo.mark_dynamic(x, 1)
        compiled(x)
    assert counter.frame_count == 1


def test_prefill_continues_from_a_state_without_recompiling() -> None:
    layer, counter = Layer(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    whole = torch.randn(2, 40, 8)
    expected, _ = layer(whole)
    state, outputs = init_power_state(2, 2, 4, 4, 2), []
    for x in whole.split((10, 13, 17), dim=1):
        o, state = compiled(x, PowerState(*(s.detach() for s in state)))
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), expected)
    assert counter.frame_count <= 2


def test_compiled_step_writes_the_state_in_place() -> None:
    layer, counter = Layer(), CompileCounterWithBackend("aot_eager")
    step = torch.compile(layer.step, backend=counter, fullgraph=True)
    ours, theirs = (init_power_state(2, 2, 4, 4, 2) for _ in range(2))
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(2, 8)
            torch.testing.assert_close(step(x, ours), layer.step(x, theirs))
    torch.testing.assert_close(ours, theirs)
    assert counter.frame_count == 1


def test_inductor() -> None:
    """Forward, backward and the step through generated code."""
    layer = Layer(p=3)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for T in (33, 70):
        x = torch.randn(2, T, 8)
        torch.testing.assert_close(loss_and_gradients(compiled, layer, x), loss_and_gradients(layer, layer, x))


def test_packed_sequences_compile() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
        return power_attention(q, k, v, cu_seqlens=cu_seqlens, chunk_size=4).o

    compiled = torch.compile(attend, backend=counter, fullgraph=True)
    for ends in ([0, 3, 9], [0, 9, 9, 20], [0, 1, 2, 3, 30]):
        q, k, v = (torch.randn(1, ends[-1], 2, 4, requires_grad=True) for _ in range(3))
        cu_seqlens = torch.tensor(ends, dtype=torch.int32)
        o, expected = compiled(q, k, v, cu_seqlens), attend(q, k, v, cu_seqlens)
        torch.testing.assert_close(o, expected)
        for x, y in zip(*(torch.autograd.grad(y.sum(), (q, k, v)) for y in (o, expected)), strict=True):
            torch.testing.assert_close(x, y)
    assert counter.frame_count <= 2


def test_padded_batches_compile() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        return power_attention(q, k, v, lengths=lengths).o

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    q, k, v = (torch.randn(3, 9, 2, 4) for _ in range(3))
    lengths = torch.tensor([9, 0, 4])
    torch.testing.assert_close(compiled(q, k, v, lengths), attend(q, k, v, lengths))


def test_export_keeps_the_op_and_any_length() -> None:
    layer = Layer().eval()
    tokens = torch.export.Dim("tokens", min=2)
    exported = torch.export.export(layer, (torch.randn(2, 12, 8),), dynamic_shapes={"x": {1: tokens}})
    targets = [str(node.target) for node in exported.graph.nodes]
    assert targets.count("zoo.power_attention.default") == 1
    x = torch.randn(2, 77, 8)
    torch.testing.assert_close(exported.module()(x), layer(x))
