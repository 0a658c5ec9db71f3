"""Modules are called as modules, so that hooks, adapters and steering hold: in training and token by token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.builder import build, configure, shrink
from zoo.generation import compile_decoder, generate_tokens
from zoo.mixers import mixers
from zoo.models import Decoder

UNTIED = ["model.tie_embeddings=false", "model.positions=rotary"]


def small(mixer: str = "power", backbone: str = "tiny") -> Decoder:
    torch.manual_seed(0)
    return build(shrink(configure(backbone, mixer=mixer, overrides=UNTIED))).eval()


class Adapted(nn.Module):
    """As adapters of low rank do it: the layer inside, and a small product beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def adapt(model: Decoder) -> None:
    """Put an adapter around every linear layer."""
    for owner in list(model.modules()):
        for name, layer in list(owner.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(owner, name, Adapted(layer))


@pytest.mark.parametrize("backbone", ["tiny", "rwkv7-124m", "mamba2-130m"])
@pytest.mark.parametrize("mixer", mixers)
def test_a_step_calls_the_modules_that_a_sequence_calls(mixer: str, backbone: str) -> None:
    model, seen = small(mixer, backbone), []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    tokens = torch.randint(257, (2, 5))
    model(tokens)
    forward = [name for name in seen if name]  # the model itself is called for a sequence alone
    seen.clear()
    model.step(tokens[:, 0], model.init_state(2, max_len=5))
    assert seen == forward
    seen.clear()
    model.loss(tokens, tokens)
    assert seen == forward
    owners = {name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}
    assert owners <= set(forward)


@pytest.mark.parametrize("backbone", ["tiny", "rwkv7-124m", "mamba2-130m"])
@pytest.mark.parametrize("mixer", mixers)
def test_adapters_hold_through_training_and_decoding(mixer: str, backbone: str) -> None:
    model = small(mixer, backbone)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    tokens = torch.randint(257, (2, 6))
    plain = model(tokens).logits
    adapt(model)
    logits = model(tokens).logits
    assert (logits - plain).norm() > 0.05 * plain.norm()
    loss = model.loss(tokens, tokens)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), tokens.flatten()))
    state = model.init_state(2, max_len=6)
    stepped = torch.stack([model.step(tokens[:, t], state) for t in range(6)], 1)
    torch.testing.assert_close(stepped, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("find", [lambda m: m.head, lambda m: m.blocks[0], lambda m: m.blocks[0].mixer])
def test_hooks_steer_what_is_trained_and_what_is_decoded(find: Callable[[Decoder], nn.Module]) -> None:
    torch.compiler.reset()
    model, tokens = small("gated-power"), torch.randint(257, (2, 6))
    decoder = compile_decoder(model, backend="eager")
    calls = (
        lambda: model(tokens).logits[:, -1],
        lambda: model.prefill(tokens, model.init_state(2), torch.tensor([6, 6]))[0],
        lambda: model.step(tokens[:, 0], model.init_state(2)),
        lambda: decoder.step(tokens[:, 0], model.init_state(2)),
        lambda: decoder.prefill(tokens, model.init_state(2), torch.tensor([6, 6]))[0],
        lambda: model.loss(tokens, tokens),
    )
    with torch.no_grad():
        before = [call() for call in calls]
        handle = find(model).register_forward_hook(steer)
        steered = [call() for call in calls]
        handle.remove()
        after = [call() for call in calls]
    for was, became, again in zip(before, steered, after, strict=True):
        assert not torch.allclose(was, became, rtol=1e-4)
        torch.testing.assert_close(was, again)
    with find(model).register_forward_hook(steer):
        for runner in (model, decoder):
            new = generate_tokens(runner, tokens, 4)
            for t in range(4):
                whole = model(torch.cat((tokens, new[:, :t]), 1)).logits[:, -1]
                assert torch.equal(whole.argmax(-1), new[:, t])


def steer(layer: nn.Module, _: Any, output: Any) -> Any:
    """Add a vector to what a layer gives, in the first channel most."""
    y = output if isinstance(output, Tensor) else output[0]
    y = y + torch.linspace(2, 0, y.shape[-1])
    return y if isinstance(output, Tensor) else (y, *output[1:])
