"""Whole models under torch.compile: no graph breaks, one recompile at most over all lengths, the same numbers."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree

from zoo.builder import build as zoo_build
from zoo.builder import shrink
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig
from zoo.recipe import available_recipes, load_recipe
from zoo.states import detach_state

ONE_OF_EACH = ("softmax", "gated-power", "gated-delta", "rwkv7")  # of each op; the others take longer than they tell
LIKE_ANOTHER = ("delta", "gated-delta", "delta-power")  # of the same layer and op as kda, and simpler around it
LENGTHS = (5, 64, 2, 3, 17, 128, 300, 1024, 2048)


def build(names: Sequence[str]) -> Decoder:
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=61,
        width=32,
        layers=len(names),
        heads=4,
        key_value_heads=2,
        max_positions=2048,
        initializer_range=0.2,
    )
    return Decoder(config, [mixers[name].config() for name in names])


def batch(T: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 61, (2, T)), torch.rand(2, T) < 0.05


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_ANOTHER else name for name in mixers]
)
def test_lengths_compile_twice_at_most(name: str) -> None:
    model = build([name])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for T in LENGTHS:
        tokens, resets = batch(T)
        logits = compiled(tokens, resets=resets).logits
        logits.square().mean().backward()
        torch.testing.assert_close(logits, model(tokens, resets=resets).logits, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "name", [name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.slow) for name in mixers]
)
def test_training_from_a_state_under_autocast_compiles_twice_at_most(name: str) -> None:
    """Truncated backpropagation: gradients stop where a piece of a document begins, and the state goes on."""
    model, counter = build([name]), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    state = expected_state = model.init_state(2, max_len=500)
    for T in (100, 2, 301):
        tokens, resets = batch(T)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, state = compiled(tokens, state, True, resets=resets)
            expected, expected_state = model(tokens, expected_state, True, resets=resets)
        torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.05)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(logits.float().square().mean(), parameters)
        wanted = torch.autograd.grad(expected.float().square().mean(), parameters)
        for a, b in zip(found, wanted, strict=True):
            assert (a - b).norm() <= 0.05 * b.norm() + 1e-4
        state, expected_state = detach_state(state), detach_state(expected_state)
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "mamba2" else pytest.mark.slow) for name in mixers]
)
def test_the_compiler_asks_for_no_more_graphs(name: str) -> None:
    """Below 4,096 tokens times heads of a batch, where it cuts sums over them: its own choices depend on sizes, too."""
    model, counter = build([name]), CompileCounterWithBackend("inductor")
    compiled = torch.compile(model.loss, fullgraph=True, backend=counter)
    for T in (64, 2, 250, 500):
        tokens, resets = batch(T)
        compiled(tokens, tokens, resets=resets).backward()
    assert counter.frame_count <= 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", available_recipes())
def test_every_recipe_trains_at_lengths_up_to_65536(recipe: str) -> None:
    torch.compiler.reset()
    small = shrink(load_recipe(recipe))
    model, counter = zoo_build(small), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.loss, fullgraph=True, backend=counter)
    longest = small.model.max_positions if small.model.positions == "learned" else 65536
    for T in (2, 300, longest):
        tokens = torch.randint(0, 257, (1, T))
        gradients = torch.autograd.grad(compiled(tokens, tokens), list(model.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", ["softmax", "sliding-window", "gated-power"])  # one for each kind of state
def test_chunks_of_a_prompt_compile_twice_at_most(name: str) -> None:
    model = build([name])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    tokens = torch.randint(0, 61, (2, 500))
    state, outputs, start = model.init_state(2, max_len=500), [], 0
    with torch.no_grad():
        for length in (100, 2, 301, 33, 64):
            logits, state = compiled(tokens[:, start : start + length], state, True)
            outputs.append(logits)
            start += length
        torch.testing.assert_close(torch.cat(outputs, dim=1), model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_ANOTHER else name for name in mixers]
)
def test_steps_compile_once(name: str) -> None:
    model = build([name])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.step, fullgraph=True, backend=counter)
    tokens, state = torch.randint(0, 61, (2, 30)), model.init_state(2, max_len=30)
    addresses = [part.data_ptr() for part in _pytree.tree_leaves(state)]
    with torch.no_grad():
        logits = torch.stack([compiled(tokens[:, t], state) for t in range(30)], dim=1)
        torch.testing.assert_close(logits, model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1
    assert [part.data_ptr() for part in _pytree.tree_leaves(state)] == addresses


def test_a_hybrid_trains_through_inductor() -> None:
    model, twin = build(["gated-power", "softmax"]), build(["gated-power", "softmax"])
    compiled = torch.compile(model, fullgraph=True)
    losses = []
    for run in (compiled, twin):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(run.parameters(), lr=0.1)
        for _ in range(3):
            tokens, resets = batch(40)
            loss = torch.nn.functional.cross_entropy(run(tokens, resets=resets).logits.flatten(0, 1), tokens.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    assert losses[2] < losses[0]
    torch.testing.assert_close(losses[:3], losses[3:], rtol=1e-4, atol=1e-5)
    for (name, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
