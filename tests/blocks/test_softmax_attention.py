"""Scores with a cap, against their definition in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.blocks.softmax_attention import attend_where, causal_attention


@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 7), st.floats(0.1, 10), st.integers(0, 2**32 - 1))
def test_scores_stay_below_their_cap(heads: int, groups: int, tokens: int, cap: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = 3 * torch.randn(2, tokens, heads * groups, 4, dtype=torch.float64, generator=generator)
    k, v = 3 * torch.randn(2, 2, tokens, heads, 4, dtype=torch.float64, generator=generator)
    visible = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(2, -1, -1)
    found = attend_where(q, k, v, visible, cap=cap)
    for head in range(heads * groups):
        scores = q[:, :, head] @ k[:, :, head // groups].mT / 2
        scores = (cap * torch.tanh(scores / cap)).masked_fill(~visible, -torch.inf)
        torch.testing.assert_close(found[:, :, head], scores.softmax(-1) @ v[:, :, head // groups])
    torch.testing.assert_close(attend_where(q, k, v, visible, cap=1e9), causal_attention(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_has_gradients_that_are_numbers(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 1, 5, 2, 4, dtype=dtype).unbind(0)
    q.requires_grad_()
    visible = torch.zeros(1, 5, 5, dtype=torch.bool)
    visible[:, 1:, 0] = True
    o = attend_where(q, k, v, visible, cap=2.0)
    assert o.dtype == dtype
    o.square().sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()
