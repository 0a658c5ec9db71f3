"""Feed-forward layers against their equations, under the law of all layers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.channel_mix import ChannelMix
from zoo.blocks.feed_forward import FeedForwardName, make_feed_forward
from zoo.blocks.layer import LayerContext, Room
from zoo.blocks.window import open_window


def test_channel_mix_follows_its_equation() -> None:
    mix = ChannelMix(LayerContext(width=6, heads=1, key_value_heads=1, head_width=6, layer=1, layers=2), 10).double()
    for parameter in mix.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    before = torch.cat((torch.zeros(2, 1, 6, dtype=torch.float64), x[:, :-1]), 1)
    inner = (x + (before - x) * mix.mu) @ mix.key.weight.T
    torch.testing.assert_close(mix(x).y, F.relu(inner) ** 2 @ mix.value.weight.T)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("gelu", lambda x: x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2),
        ("erf-gelu", lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ("squared-relu", lambda x: torch.where(x > 0, x * x, 0 * x)),
        ("swiglu", lambda x: x / (1 + torch.exp(-x))),
        ("geglu", lambda x: x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2),
    ],
)
def test_layers_follow_their_equations(name: FeedForwardName, activation: Callable[[Tensor], Tensor]) -> None:
    layer = make_feed_forward(name, 10, LayerContext(width=6, heads=1, key_value_heads=1, head_width=6))
    assert layer is not None
    layer.double()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    window = open_window(x, None, lengths=None, resets=None, return_state=False)
    weights = {key.partition(".")[0]: weight for key, weight in layer.state_dict().items()}
    inner = x @ weights["expand"].T
    inner = activation(x @ weights["gate"].T) * inner if "gate" in weights else activation(inner)
    torch.testing.assert_close(layer(x, (), window=window)[0], inner @ weights["contract"].T)


@pytest.mark.parametrize("name", ["gelu", "erf-gelu", "squared-relu", "swiglu", "geglu"])
def test_layers_without_a_past_have_an_empty_state(name: FeedForwardName) -> None:
    layer = make_feed_forward(name, 10, LayerContext(width=6, heads=1, key_value_heads=1, head_width=6))
    assert layer is not None
    x = torch.randn(2, 7, 6)
    window = open_window(x, None, lengths=None, resets=None, return_state=True)
    y, state = layer(x, layer.empty_state(Room(2)), window=window)
    assert state == layer.empty_state(Room(2)) == ()
    assert y.shape == x.shape
    assert layer.flops(7) == 0
    assert make_feed_forward("none", 0, LayerContext(width=6, heads=1, key_value_heads=1, head_width=6)) is None
