"""Activation checkpointing: the same gradients, eager and compiled, and what is kept for them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig
from zoo.models.checkpointing import Checkpointing

KINDS = ["softmax", "gated-power", "gated-delta", "rwkv7"]  # one for each op; the others take longer than they tell
MIXERS = [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in mixers]
MODES = ["selective", pytest.param("full", marks=pytest.mark.slow)]


def build(name: str, mode: Checkpointing, device: str = "cpu", width: int = 32) -> Decoder:
    torch.compiler.reset()
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=61, width=width, layers=2, heads=max(2, width // 64), positions="rotary", initializer_range=0.2
    )
    with torch.device(device):
        model = Decoder(config, [mixers[name].config()] * 2)
    model.checkpoint(mode)
    return model


def batch(T: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    tokens, targets = (torch.randint(0, 61, (2, T), device=device) for _ in range(2))
    return tokens, targets, torch.rand(2, T, device=device) < 0.05


def gradients(
    model: Decoder, loss: Callable[..., Tensor], tokens: Tensor, targets: Tensor, resets: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Tensor]:  # fmt: skip
    """Gradients of all parameters under autocast."""
    with torch.autocast(tokens.device.type, dtype=dtype):
        value = loss(tokens, targets, resets=resets)
    return list(torch.autograd.grad(value, list(model.parameters())))


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("name", MIXERS)
def test_gradients_are_those_without(name: str, mode: Checkpointing) -> None:
    inputs = batch(70)
    plain, checkpointed = build(name, "none"), build(name, mode)
    expected = gradients(plain, plain.loss, *inputs)
    for found, wanted in zip(gradients(checkpointed, checkpointed.loss, *inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)  # the same sums in the same order


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MIXERS)
def test_compiles_whole_for_all_lengths(name: str, mode: Checkpointing) -> None:
    plain, model = build(name, "none"), build(name, mode)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.loss, fullgraph=True, backend=counter)
    for T in (64, 5, 130):
        inputs = batch(T)
        expected = gradients(plain, plain.loss, *inputs)
        for found, wanted in zip(gradients(model, compiled, *inputs), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0.05, atol=2e-3)
    assert counter.frame_count <= 2


class Graphs:
    """A backend that keeps the forward and the backward graph, and runs them as they are."""

    def __init__(self) -> None:
        self.found: list[fx.GraphModule] = []
        self.backend = aot_autograd(fw_compiler=self._keep, partition_fn=min_cut_rematerialization_partition)

    def _keep(self, graph: fx.GraphModule, _inputs: list[Any]) -> Any:
        self.found.append(graph)
        return make_boxed_func(graph.forward)

    def ops(self, graph: int) -> Counter[str]:
        """How often each op is called; an op that could draw random numbers is found where its calls are replayed."""
        calls = [node for node in self.found[graph].graph.nodes if node.op == "call_function"]
        replayed = [op for node in calls if "rng_state" in str(node.target) for op in node.args if callable(op)]
        return Counter(map(str, [*replayed, *(node.target for node in calls)]))

    def kept_bytes(self) -> int:
        """Bytes of activations that the forward graph computes for the backward graph."""
        (output,) = self.found[0].graph.find_nodes(op="output")
        kept = [node for node in output.args[0] if isinstance(node, fx.Node) and node.op != "placeholder"]
        values = [node.meta["val"] for node in kept]
        return sum(value.nbytes for value in values if isinstance(value, Tensor) and value.is_floating_point())


def trace(
    name: str, mode: Checkpointing, T: int, device: str = "cpu", width: int = 32, dtype: torch.dtype = torch.bfloat16
) -> Graphs:
    model, graphs = build(name, mode, device, width), Graphs()
    compiled = torch.compile(model.loss, fullgraph=True, dynamic=False, backend=graphs.backend)
    gradients(model, compiled, *batch(T, device)[:2], dtype=dtype)
    return graphs


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("softmax", "aten._scaled_dot_product_flash_attention_for_cpu.default"),
        ("gated-power", "zoo.power_attention_chunked.default"),
        ("gated-delta", "zoo.delta_attention.default"),
        ("rwkv7", "zoo.rwkv7.default"),
    ],
)
def test_selective_computes_all_but_the_op_again(name: str, op: str) -> None:
    plain, selective, full = (trace(name, mode, 64) for mode in ("none", "selective", "full"))
    assert [graphs.ops(1)[op] for graphs in (plain, selective, full)] == [0, 0, 2]
    products = [sum(graphs.ops(1)[f"aten.{kind}.default"] for kind in ("mm", "addmm")) for graphs in (plain, selective)]
    assert products[1] > products[0]
    assert plain.kept_bytes() > selective.kept_bytes() > full.kept_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_what_is_kept_on_a_gpu(mode: Checkpointing) -> None:
    """There the compiler could keep what is inside the op: laid out inputs, or states."""
    T, width = 8192, 256
    row = 2 * 4 * T * width  # bytes of both sequences, a float32 number a channel
    layer = row if mode == "full" else 5 * row // 2  # its input, and the op's output, in float32 and in bfloat16
    others = 3 * row // 2  # rotary angles, numbers a head and token, logits and what they come from
    assert trace("gated-power", mode, T, "cuda", width).kept_bytes() <= 2 * layer + others


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_backward_pass_prepares_itself_on_a_gpu() -> None:
    """Its preparation depends on no incoming gradient, and would otherwise be moved into the forward pass."""
    graphs = trace("gated-power", "none", 8192, "cuda", 128, torch.float16)  # whose kernels the compiler sees
    launches = [graphs.ops(index)["triton_kernel_wrapper_functional"] for index in (0, 1)]
    assert launches[0] < launches[1]
