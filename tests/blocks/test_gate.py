"""The gate of a head: how it starts, and its precision."""

import torch

from zoo.blocks.gate import RetentionGate


def test_gates_start_spread_over_the_heads() -> None:
    gate = RetentionGate(16, 6, (0.9, 0.9999))
    gate.initialize(std=0.02)
    forgotten = 1 - gate(torch.zeros(16)).exp().double()
    torch.testing.assert_close(forgotten[[0, -1]], torch.tensor([0.1, 0.0001]).double(), rtol=1e-2, atol=0)
    ratios = forgotten[:-1] / forgotten[1:]
    torch.testing.assert_close(ratios, ratios.mean().expand(5), rtol=2e-2, atol=0)
    assert gate(torch.randn(4, 16).bfloat16().float()).dtype == torch.float32


def test_gates_are_float32_in_a_bfloat16_model() -> None:
    gate = RetentionGate(16, 6, (0.9, 0.9999)).bfloat16()
    assert gate(torch.randn(4, 16, dtype=torch.bfloat16)).dtype == torch.float32
