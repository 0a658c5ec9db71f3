"""Whole models under torch.compile: no graph breaks, one recompile at most over all lengths, the same numbers."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig

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


@pytest.mark.parametrize("name", mixers)
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


@pytest.mark.parametrize("name", mixers)
def test_steps_compile_once(name: str) -> None:
    model = build([name])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.step, fullgraph=True, backend=counter)
    tokens, state = torch.randint(0, 61, (2, 30)), model.init_state(2, max_len=30)
    addresses = [part.data_ptr() for layer in state.layers for part in layer]
    with torch.no_grad():
        logits = torch.stack([compiled(tokens[:, t], state) for t in range(30)], dim=1)
        torch.testing.assert_close(logits, model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1
    assert [part.data_ptr() for layer in state.layers for part in layer] == addresses


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
