"""One token's attention to a cache, run as Python by Triton's interpreter where that is on, on a GPU otherwise."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.blocks.cache import held_positions
from zoo.kernels.cache_attention import cache_attention, supports_cache_attention
from zoo.kernels.triton_support import INTERPRETED

if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs Triton's interpreter or a GPU", allow_module_level=True)

from zoo.kernels.cache_attention.split import attend_in_splits  # after the skip: Triton may not be there

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def problem(B: int, L: int, heads: tuple[int, int], K: int, dtype: torch.dtype, position: list[int]) -> list[Tensor]:
    random = torch.Generator().manual_seed(B + L + K)
    q = torch.randn(B, heads[0], K, generator=random)
    keys, values = torch.randn(2, B, L, heads[1], K, generator=random)
    count = torch.tensor(position)
    start = (count - torch.tensor([3, 50])[torch.arange(B) % 2]).clamp(min=0)
    return [x.to(DEVICE, dtype) for x in (q, keys, values)] + [count.to(DEVICE), start.to(DEVICE)]


def definition(q: Tensor, keys: Tensor, values: Tensor, position: Tensor, start: Tensor) -> Tensor:
    """In float64."""
    group = q.shape[1] // keys.shape[2]
    keys, values = (x.double().repeat_interleave(group, 2) for x in (keys, values))
    scores = torch.einsum("bhk,blhk->bhl", q.double(), keys) / math.sqrt(q.shape[-1])
    seen = held_positions(position, keys.shape[1]) >= start[:, None]
    return torch.einsum("bhl,blhk->bhk", scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1), values)


@settings(max_examples=15 if INTERPRETED else 100, deadline=None)
@given(
    B=st.integers(1, 3),
    L=st.integers(1, 150),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 1)]),
    K=st.sampled_from([16, 32, 64]),
    dtype=st.sampled_from(DTYPES),
    splits=st.sampled_from([None, 1, 2, 5]),
    data=st.data(),
)
def test_follows_the_definition(B, L, heads, K, dtype, splits, data):
    position = [data.draw(st.integers(1, 2 * L)) for _ in range(B)]
    inputs = problem(B, L, heads, K, dtype, position)
    exact = definition(*inputs)
    torch.testing.assert_close(
        attend_in_splits(*inputs, splits=splits).double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize(("dtype", "K"), list(product(DTYPES, (64, 128))))
def test_takes_a_cache_in_another_dtype_and_strided_queries(dtype: torch.dtype, K: int) -> None:
    q, keys, values, position, start = problem(2, 70, (4, 2), K, dtype, [70, 9])
    q = torch.cat((q, q), -1)[..., :K]
    inputs = (q, keys.float(), values.float(), position, start)
    assert supports_cache_attention(*inputs[:3])
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(cache_attention(*inputs).double(), definition(*inputs), rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
@pytest.mark.parametrize("heads", [(12, 12), (16, 2)])
def test_a_long_cache(heads: tuple[int, int]) -> None:
    inputs = problem(2, 40_000, heads, 64, torch.bfloat16, [40_000, 1])
    torch.testing.assert_close(cache_attention(*inputs).double(), definition(*inputs), rtol=2e-2, atol=2e-2)
    compiled = torch.compile(cache_attention, fullgraph=True)
    assert torch.equal(compiled(*inputs), cache_attention(*inputs))
    assert (cache_attention(*inputs)[1] == inputs[2][1, 0].repeat_interleave(heads[0] // heads[1], 0)).all()
