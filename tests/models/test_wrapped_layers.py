"""Layers are called as modules, so that what wraps one holds, and changes nothing: not what it shares with others."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils import _pytree

from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig
from zoo.models.block import Block
from zoo.models.checkpointing import Checkpointing


class Forwarding(nn.Module):
    """Passes calls on, with the containers among their arguments made anew, as sharding does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.calls = 0

    def forward(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        arguments, named = _pytree.tree_map(lambda part: part, (arguments, named))
        return self.layer(*arguments, **named)


def compiled(layer: nn.Module) -> Any:
    return torch.compile(layer, fullgraph=True, backend="aot_eager")


def compiled_in_place(layer: nn.Module) -> nn.Module:
    layer.compile(fullgraph=True, backend="aot_eager")
    return layer


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "forwarding": Forwarding,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "checkpointed": checkpoint_wrapper,
    "checkpointed, forwarding": lambda layer: checkpoint_wrapper(Forwarding(layer)),
}


def build(*names: str) -> Decoder:
    torch.compiler.reset()
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=31, width=16, layers=len(names), heads=2, positions="none", feed_forward="rwkv7", around="rwkv7"
    )
    model = Decoder(config, [mixers[name].config() for name in names]).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.2)
    return model


def logits_and_gradients(model: Decoder, parameters: list[nn.Parameter]) -> list[Tensor]:
    tokens = torch.arange(22).view(2, 11)
    logits = model(tokens, resets=tokens % 7 == 5).logits
    # A hybrid's first such layer has nobody before it to mix values in from.
    found = torch.autograd.grad(logits.square().mean(), parameters, allow_unused=True, materialize_grads=True)
    return [logits, *found]


@pytest.mark.parametrize("mode", ["none", "full"])
@pytest.mark.parametrize("names", [("rwkv7", "rwkv7", "rwkv7"), ("gated-power", "rwkv7", "rwkv7")], ids="-".join)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_layers_compute_what_they_did(wrapper: str, names: tuple[str, ...], mode: Checkpointing) -> None:
    model = build(*names)
    parameters = list(model.parameters())
    expected = logits_and_gradients(model, parameters)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.mixer = WRAPPERS[wrapper](block.mixer)  # type: ignore[assignment]
        if mode == "none":
            block.feed_forward = WRAPPERS[wrapper](block.feed_forward)  # type: ignore[assignment, arg-type]
    model.checkpoint(mode)
    for found, wanted in zip(logits_and_gradients(model, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_values_that_are_shared_show() -> None:
    """Without them the first test would hold whatever is lost."""
    model = build("rwkv7", "rwkv7")
    tokens = torch.arange(11)[None]
    logits = model(tokens).logits
    model.blocks[1].mixer.register_forward_pre_hook(  # type: ignore[union-attr, operator]
        lambda layer, arguments, named: named["window"].shared.earlier.clear(), with_kwargs=True
    )
    assert (model(tokens).logits - logits).norm() > 0.01 * logits.norm()


def test_hooks_see_every_call() -> None:
    model = build("rwkv7", "gated-power")
    seen: list[nn.Module] = []
    for block in model.blocks:
        for layer in (block.mixer, block.feed_forward):
            layer.register_forward_hook(lambda layer, *_: seen.append(layer))  # type: ignore[union-attr, operator]
    model(torch.arange(11)[None])
    assert len(seen) == 4
    model.step(torch.arange(1), model.init_state(1))
    assert len(seen) == 8
    assert seen[:4] == seen[4:]


def test_a_graph_that_is_dropped_is_freed() -> None:
    """What a checkpointed layer shares is not kept by that layer's own recomputation."""
    model = build("rwkv7", "rwkv7")
    model.checkpoint("full")
    kept: list[weakref.ref[Tensor]] = []
    model.blocks[1].mixer.register_forward_pre_hook(  # type: ignore[union-attr, operator]
        lambda layer, arguments, named: kept.extend(map(weakref.ref, named["window"].shared.earlier.values())),
        with_kwargs=True,
    )
    model(torch.arange(11)[None])
    gc.collect()
    assert kept
    assert not any(reference() is not None for reference in kept)
