"""Every op under the compiler: whole graphs, at most one recompile over lengths, the same numbers, export."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.kernels.cache_attention import cache_attention
from zoo.kernels.causal_convolution import causal_convolution
from zoo.kernels.linear_cross_entropy import linear_cross_entropy
from zoo.kernels.power import PowerState, init_power_state, power_attention, power_attention_step
from zoo.kernels.rwkv7 import init_rwkv7_state, rwkv7, rwkv7_step

from .marks import KERNEL_DEVICE, interpreted_or_on_gpu, not_interpreted

LENGTHS = (2, 7, 64, 65, 128, 300, 600)


class Power(nn.Module):
    """Projections around the op, so that there is something to trace and to fuse."""

    width, op = 8, "zoo.power_attention.default"

    def __init__(self, p: int = 2) -> None:
        super().__init__()
        self.p = p
        self.project = nn.Linear(8, 4 * 4 + 2 * 4 + 2 * 4 + 2)

    def inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v, gates = self.project(x).split((16, 8, 8, 2), dim=-1)
        q, k, v = (y.unflatten(-1, (-1, 4)) for y in (q, k, v))
        return q, k, v, nn.functional.logsigmoid(gates.float())

    def init_state(self) -> PowerState:
        return init_power_state(2, 2, 4, 4, self.p)

    def forward(self, x: Tensor, state: PowerState | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        o, state = power_attention(*self.inputs(x), p=self.p, state=state, return_state=True)
        assert state is not None
        return o.flatten(-2), state

    def step(self, x: Tensor, state: PowerState) -> Tensor:
        return power_attention_step(*self.inputs(x), p=self.p, state=state).flatten(-2)


class Rwkv7(nn.Module):
    """As `Power`."""

    width, op = 5, "zoo.rwkv7.default"

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(5, 6 * 8)

    def inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        r, w, k, v, kappa, a = self.project(x).unflatten(-1, (6, 2, 4)).unbind(-3)
        return r, -0.607 * w.float().sigmoid(), k, v, nn.functional.normalize(kappa, dim=-1), a.sigmoid()

    def init_state(self) -> tuple[Tensor]:
        return (init_rwkv7_state(2, 2, 4),)

    def forward(self, x: Tensor, state: tuple[Tensor] | None = None) -> tuple[Tensor, tuple[Tensor]]:
        o, after = rwkv7(*self.inputs(x), state=None if state is None else state[0], return_state=True)
        assert after is not None
        return o.flatten(-2), (after,)

    def step(self, x: Tensor, state: tuple[Tensor]) -> Tensor:
        return rwkv7_step(*self.inputs(x), state=state[0]).flatten(-2)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    return power_attention(q, k, v, cu_seqlens=cu_seqlens, chunk_size=4).o


def attend_padded(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    return power_attention(q, k, v, lengths=lengths).o


def mix_marked(resets: Tensor, lengths: Tensor, *tokens: Tensor) -> Tensor:
    return rwkv7(*tokens, resets=resets, lengths=lengths).o


def padded(T: int) -> Tensor:
    return torch.tensor([T, 0, T // 2])


def random(B: int, T: int, count: int = 3) -> list[Tensor]:
    return [torch.randn(B, T, 2, 4, requires_grad=True) for _ in range(count)]


def cache(L: int) -> list[Tensor]:
    parts = (torch.randn(2, 4, 16), *torch.randn(2, 2, L, 2, 16), *torch.tensor([[L, 9], [0, 3]]))
    return [x.to(KERNEL_DEVICE) for x in parts]


def convolved(T: int) -> list[Tensor]:
    """Inputs of a convolution of four tokens: x, weight, bias, tail and resets."""
    shapes = (2, T, 5), (5, 4), (5,), (2, 3, 5)
    tensors = [torch.randn(shape, device=KERNEL_DEVICE, requires_grad=True) for shape in shapes]
    return [*tensors, torch.rand(2, T, device=KERNEL_DEVICE) < 0.2]


def convolve(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, resets: Tensor) -> Tensor:
    return causal_convolution(x, weight, bias, tail=tail, resets=resets)


# A function, and inputs of several sizes.
CALLS: dict[str, tuple[Callable[..., Tensor], Callable[[], list[list[Tensor]]]]] = {
    "power, packed": (
        attend_packed,
        lambda: [
            [*random(1, ends[-1]), torch.tensor(ends, dtype=torch.int32)]
            for ends in ([0, 3, 9], [0, 9, 9, 20], [0, 1, 2, 3, 30])
        ],
    ),
    "power, padded": (attend_padded, lambda: [[*random(3, T), padded(T)] for T in (9, 20, 33)]),
    "rwkv7, padded, with resets": (
        mix_marked,
        lambda: [[torch.rand(3, T) < 0.2, padded(T), *Rwkv7().inputs(torch.randn(3, T, 5))] for T in (9, 20, 33)],
    ),
    "cross entropy": (
        linear_cross_entropy,
        lambda: [
            [torch.randn(N, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True), torch.randint(0, 11, (N,))]
            for N in (7, 20, 33)
        ],
    ),
    "cache": (cache_attention, lambda: [cache(L) for L in (40, 70, 33)]),
    "convolution": (convolve, lambda: [convolved(T) for T in (9, 20, 33)]),
}

Layer = Power | Rwkv7
every_layer = pytest.mark.parametrize("make", [pytest.param(layer, marks=not_interpreted) for layer in (Power, Rwkv7)])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def loss_and_gradients(model: Any, layer: Layer, x: Tensor) -> list[Tensor]:
    o, state = model(x)
    return [o, *state, *torch.autograd.grad(o.square().sum() + state[0].sum(), list(layer.parameters()))]


@every_layer
def test_one_recompile_over_lengths(make: type[Layer]) -> None:
    layer, counter = make(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for T in LENGTHS:
        x = torch.randn(2, T, layer.width)
        torch.testing.assert_close(loss_and_gradients(compiled, layer, x), loss_and_gradients(layer, layer, x))
    assert counter.frame_count <= 2


@every_layer
def test_no_recompile_over_lengths_that_are_marked(make: type[Layer]) -> None:
    layer, counter = make(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for T in (5, 64, 300):
        x = torch.randn(2, T, layer.width)
        torch._dynamo.mark_dynamic(x, 1)
        loss_and_gradients(compiled, layer, x)
    assert counter.frame_count == 1


@every_layer
def test_prefill_continues_from_a_state_without_recompiling(make: type[Layer]) -> None:
    layer, counter = make(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    whole = torch.randn(2, 40, layer.width)
    expected, _ = layer(whole)
    state, outputs = layer.init_state(), []
    for x in whole.split((10, 13, 17), dim=1):
        o, state = compiled(x, torch.utils._pytree.tree_map(Tensor.detach, state))
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), expected)
    assert counter.frame_count <= 2


@every_layer
def test_compiled_step_writes_the_state_in_place(make: type[Layer]) -> None:
    layer, counter = make(), CompileCounterWithBackend("aot_eager")
    step = torch.compile(layer.step, backend=counter, fullgraph=True)
    ours, theirs = layer.init_state(), layer.init_state()
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(2, layer.width)
            torch.testing.assert_close(step(x, ours), layer.step(x, theirs))
    torch.testing.assert_close(ours, theirs)
    assert counter.frame_count == 1


@not_interpreted
@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (lambda: Power(p=3), {}),
        (Rwkv7, {"rtol": 1e-5, "atol": 1e-4}),  # sums over tokens in another order
    ],
    ids=["Power", "Rwkv7"],
)
def test_inductor(make: Callable[[], Layer], tolerance: dict[str, float]) -> None:
    """Forward and backward through generated code."""
    layer = make()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for T in (33, 70):
        x = torch.randn(2, T, layer.width)
        ours, theirs = loss_and_gradients(compiled, layer, x), loss_and_gradients(layer, layer, x)
        torch.testing.assert_close(ours, theirs, **tolerance)


@every_layer
def test_export_keeps_the_op_and_any_length(make: type[Layer]) -> None:
    layer = make().eval()
    tokens = torch.export.Dim("tokens", min=2)
    exported = torch.export.export(layer, (torch.randn(2, 12, layer.width),), dynamic_shapes={"x": {1: tokens}})
    targets = [str(node.target) for node in exported.graph.nodes]
    assert targets.count(layer.op) == 1
    for T in (77, 300):
        x = torch.randn(2, T, layer.width)
        torch.testing.assert_close(exported.module()(x), layer(x))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=interpreted_or_on_gpu if name in ("cache", "convolution") else not_interpreted)
        for name in CALLS
    ],
)
def test_other_sizes_compile_twice_at_most(name: str) -> None:
    function, batches = CALLS[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for inputs in batches():
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
        found, expected = compiled(*leaves), function(*leaves)
        torch.testing.assert_close(found, expected)
        wanted = [x for x in leaves if x.requires_grad]
        if wanted:
            pairs = zip(*(torch.autograd.grad(y.sum(), wanted) for y in (found, expected)), strict=True)
            for x, y in pairs:
                torch.testing.assert_close(x, y)
    assert counter.frame_count <= 2
