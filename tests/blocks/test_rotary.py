"""Rotary tables against angles in exact arithmetic, as far as long contexts reach."""

import math
from fractions import Fraction

import pytest
import torch

from zoo.blocks.rotary import Rotation, rotate, turning_width


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("position", [1, 1000, 131_071, 2**24 - 1])
def test_tables_are_right_to_float32_at_any_position(position: int, base: float) -> None:
    width = 64
    positions = torch.tensor([[position]])
    turns = [Fraction(position) * Fraction(base ** (-2 * pair / width) / (2 * math.pi)) for pair in range(width // 2)]
    expected = torch.tensor([math.cos(2 * math.pi * float(turn % 1)) for turn in turns])
    rotation = Rotation(width, base)
    for make in (rotation.table, rotation.fused_table):
        table = make(positions, torch.bfloat16)
        assert table.cos.dtype == table.sin.dtype == torch.float32
        torch.testing.assert_close(table.cos[0, 0, 0, : width // 2], expected, rtol=0, atol=1e-6)
        squares = table.cos.double() ** 2 + table.sin.double() ** 2
        torch.testing.assert_close(squares, torch.ones_like(squares), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("width", "share", "turning"), [(80, 0.4, 32), (8, 0.75, 6), (8, 0.4, 4), (9, 1, 9), (8, 0.1, 0)]
)
def test_a_share_turns_an_even_number_of_channels(width: int, share: float, turning: int) -> None:
    assert turning_width(width, share) == turning


def test_channels_beyond_the_table_stay_as_they_are() -> None:
    x, positions = torch.randn(2, 5, 3, 16), torch.arange(5)[None]
    table = Rotation(6, 10_000.0).table(positions, x.dtype)
    turned = rotate(x, table)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    assert torch.equal(turned[..., :6], rotate(x[..., :6], table))
