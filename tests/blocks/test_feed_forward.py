"""Feed-forward layers against their equations, under the law of all layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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


@pytest.mark.parametrize("name", ["gelu", "swiglu"])
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
