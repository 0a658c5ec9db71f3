"""Every mixer in every architecture: built, compiled whole, trained by a step, and decoded."""

from typing import Any

import pytest
import torch
from torch import nn

from zoo.blocks.around import Around, ConvolvedMixer, ShiftedMixer
from zoo.builder import build, configure, shrink
from zoo.mixers import mixers
from zoo.mixers.rwkv7 import FIRST_VALUES
from zoo.models.block import Block
from zoo.models.decoder import Decoder

BACKBONES = ("gpt2-124m", "llama-360m", "mamba2-130m", "rwkv7-124m")


def small(backbone: str, mixer: str) -> Decoder:
    """A model at tiny size in float64, with parameters large enough that every one of them shows."""
    torch.manual_seed(0)
    model = build(shrink(configure(backbone, mixer=mixer))).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.2)
    return model


@pytest.mark.parametrize("mixer", mixers)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_pair_compiles_whole_trains_and_decodes(backbone: str, mixer: str) -> None:
    torch.compiler.reset()
    model, tokens = small(backbone, mixer), torch.randint(0, 257, (2, 13))
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # what autograd makes of it is each mixer's own
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss() -> torch.Tensor:
        logits = compiled(tokens[:, :-1]).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    before = loss()
    before.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert loss() < before

    whole = model(tokens).logits
    state = model.init_state(2, max_len=13)
    steps = torch.stack([model.step(tokens[:, t], state) for t in range(13)], 1)
    torch.testing.assert_close(steps, whole)
    first, state = model(tokens[:, :6], model.init_state(2, max_len=13), return_state=True)
    last, _ = model(tokens[:, 6:], state)
    torch.testing.assert_close(torch.cat((first, last), 1), whole)


def test_an_architecture_keeps_what_stands_around_another_mixer() -> None:
    def layer(backbone: str, mixer: str) -> nn.Module:
        block = build(backbone, mixer=mixer, device="meta").blocks[1]
        assert isinstance(block, Block)
        return block.mixer

    assert isinstance(layer("mamba2-130m", "gated-power"), ConvolvedMixer)
    assert isinstance(layer("rwkv7-124m", "gated-power"), ShiftedMixer)
    for backbone, mixer in (("mamba2-130m", "mamba2"), ("rwkv7-124m", "rwkv7"), ("gpt2-124m", "mamba2")):
        assert not isinstance(layer(backbone, mixer), Around)


def test_values_of_the_first_layer_reach_the_others() -> None:
    model, tokens = small("rwkv7-124m", "rwkv7"), torch.randint(0, 257, (1, 5))
    first, second = model.blocks
    assert isinstance(first, Block)
    assert isinstance(second, Block)
    seen: list[torch.Tensor] = []

    def spy(_module: nn.Module, _arguments: object, named: dict[str, Any]) -> None:
        seen.append(named["window"].shared.earlier[FIRST_VALUES])

    second.mixer.register_forward_pre_hook(spy, with_kwargs=True)
    model(tokens)
    assert seen[0].shape == (1, 5, model.config.width)
    model.step(tokens[:, 0], model.init_state(1))
    assert seen[1].shape == (1, model.config.width)
