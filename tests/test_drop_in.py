"""Power attention with PyTorch's arguments and layout, and hints where a layout is mistaken."""

from typing import Any

import pytest
import torch

import zoo
from zoo.errors import InputError


def problem(heads: int = 4, key_heads: int = 4) -> tuple[torch.Tensor, ...]:
    q = torch.randn(2, heads, 10, 8)
    k, v = torch.randn(2, 2, key_heads, 10, 8)
    return q, k, v


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("gated", [False, True])
def test_is_the_op_with_heads_before_tokens(heads: int, key_heads: int, gated: bool) -> None:
    q, k, v = problem(heads, key_heads)
    log_g = -torch.rand(2, key_heads, 10) if gated else None
    options = {"is_causal": True, "scale": 0.3, "enable_gqa": heads != key_heads}
    found = zoo.scaled_dot_product_power_attention(q, k, v, **options, log_g=log_g)
    gates = None if log_g is None else log_g.transpose(1, 2)
    expected, _ = zoo.power_attention(*(x.transpose(1, 2) for x in (q, k, v)), gates, scale=0.3)
    assert found.shape == q.shape
    assert torch.equal(found, expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"attn_mask": torch.ones(10, 10)}, "attn_mask: expected None"),
        ({"dropout_p": 0.1}, "dropout_p: expected 0, .* was 0.1"),
        ({"is_causal": False}, "is_causal: expected True"),
        ({"key": torch.randn(2, 4, 12, 8)}, "key: expected 10 tokens as in query, was 12"),
        ({"key": torch.randn(2, 2, 10, 8)}, "key: expected 4 heads as in query, or enable_gqa=True, was 2"),
        ({"value": torch.randn(4, 10, 8)}, r"value: expected \[B, H, T, V\], was \[4, 10, 8\]"),
    ],
)
def test_what_a_sum_over_the_past_cannot_do_is_refused(change: dict[str, Any], line: str) -> None:
    q, k, v = problem()
    arguments = {"query": q, "key": k, "value": v, "is_causal": True} | change
    with pytest.raises(InputError, match=line):
        zoo.scaled_dot_product_power_attention(**arguments)


@pytest.mark.parametrize(
    ("k", "log_g"),
    [((2, 2, 10, 8), None), ((2, 10, 4, 8), None), ((2, 4, 10, 8), (2, 10, 4))],
    ids=["grouped", "one in each", "gates"],
)
def test_a_mistaken_layout_is_hinted_at(k: tuple[int, ...], log_g: tuple[int, ...] | None) -> None:
    q, keys = torch.randn(2, 4, 10, 8), torch.randn(k)
    gates = None if log_g is None else -torch.rand(log_g)
    with pytest.raises(InputError, match=r"the layout is \[B, T, H, K\], of \[B, H, T, K\] pass x.transpose\(1, 2\)"):
        zoo.power_attention(q, keys, keys, gates)


def test_other_mistakes_are_not_taken_for_a_layout() -> None:
    q, k = torch.randn(2, 9, 4, 8), torch.randn(2, 10, 4, 8)
    with pytest.raises(InputError) as refused:
        zoo.power_attention(q, k, k)
    assert "layout" not in str(refused.value)
