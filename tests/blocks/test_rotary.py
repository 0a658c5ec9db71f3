"""Rotary tables against angles in exact arithmetic, as far as long contexts reach."""

import math
from fractions import Fraction

import pytest
import torch

from zoo.blocks.rotary import Rotation


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
