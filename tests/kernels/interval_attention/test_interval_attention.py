"""Attention of queries to intervals of keys, held to the mask that the intervals stand for."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.interval_attention import interval_attention
from zoo.kernels.interval_attention.blocks import attend

LENGTHS = (1, 2, 15, 127, 128, 129, 300, 513)


class Intervals(NamedTuple):
    """What each of T queries sees of so many keys: documents, perhaps narrowed by a window, after some older keys."""

    first: Tensor
    last: Tensor
    keys: int

    @property
    def visible(self) -> Tensor:
        """`[B, T, L]` bool."""
        key = torch.arange(self.keys, device=self.first.device)
        return (key >= self.first[..., None]) & (key <= self.last[..., None])


@st.composite
def intervals(draw: st.DrawFn, lengths: tuple[int, ...] = LENGTHS) -> Intervals:
    rows, tokens, older = (
        draw(st.integers(1, 3)),
        draw(st.sampled_from(lengths)),
        draw(st.sampled_from((0, 1, 90, 400))),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    spare = draw(st.integers(0, 40))  # slots of a cache that hold nothing yet
    last = torch.randint(older + 1, (rows, 1), generator=generator) + torch.arange(tokens)
    begins = torch.rand(rows, tokens, generator=generator) < draw(st.sampled_from((0.0, 2 / tokens, 0.3, 1.0)))
    start = (last[:, :1] * torch.rand(rows, 1, generator=generator)).long()
    first = torch.cat((start, torch.where(begins, last, 0)), 1).cummax(1).values[:, 1:]
    window = draw(st.sampled_from((None, 1, 7, 128, 200)))
    if window is not None:
        first = torch.maximum(first, last - window + 1)
    return Intervals(first, last, older + tokens + spare)


def tensors(tokens: int, keys: int, rows: int, dtype: torch.dtype, device: str = "cpu", K: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens + keys)
    shapes = ((rows, tokens, 4, K), (rows, keys, 2, K), (rows, keys, 2, K), (rows, tokens, 4, K))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]


def by_mask(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    o = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=visible[:, None], enable_gqa=True
    )
    return o.transpose(1, 2)


def with_gradients(o: Tensor, inputs: list[Tensor], do: Tensor) -> list[Tensor]:
    return [o.detach(), *torch.autograd.grad(o, inputs, do)]


@given(intervals(), st.sampled_from((torch.float64, torch.float32)))
def test_intervals_equal_the_mask_that_they_stand_for(seen: Intervals, dtype: torch.dtype) -> None:
    rows, tokens = seen.first.shape
    *inputs, do = tensors(tokens, seen.keys, rows, dtype)
    inputs = [x.requires_grad_() for x in inputs]
    got = with_gradients(interval_attention(*inputs, seen.first, seen.last), inputs, do)
    expected = with_gradients(by_mask(*inputs, seen.visible), inputs, do)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9 if dtype == torch.float64 else 1e-4, atol=1e-5)


@given(intervals())
def test_a_row_of_intervals_serves_all_rows(seen: Intervals) -> None:
    first, last = seen.first[:1], seen.last[:1]
    q, k, v, _ = tensors(first.shape[1], seen.keys, 3, torch.float64)
    every = interval_attention(q, k, v, first.expand(3, -1), last.expand(3, -1))
    torch.testing.assert_close(interval_attention(q, k, v, first, last), every)


@settings(max_examples=5)
@given(intervals(lengths=(129, 300)))
def test_the_op_is_registered_as_it_should_be(seen: Intervals) -> None:
    rows, tokens = seen.first.shape
    q, k, v, _ = tensors(tokens, seen.keys, rows, torch.float32)
    torch.library.opcheck(attend, (q.requires_grad_(), k, v, seen.first, seen.last))


def test_other_documents_compile_nothing() -> None:
    compiled = torch.compile(interval_attention, fullgraph=True, backend="eager")
    q, k, v, _ = tensors(300, 300, 1, torch.float32)
    last = torch.arange(300)[None]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for starts in ((0,), (0, 100), (0, 1, 2, 250)):
            first = torch.zeros_like(last)
            first[0, list(starts)] = last[0, list(starts)]
            first = first.cummax(1).values
            expected = by_mask(q, k, v, Intervals(first, last, 300).visible)
            torch.testing.assert_close(compiled(q, k, v, first, last), expected)


def test_memory_is_linear_in_the_length() -> None:
    tokens = 200_000  # whose mask would take 40 GB
    q, k, v, do = tensors(tokens, tokens, 1, torch.float32)
    last = torch.arange(tokens)[None]
    inputs = [x[:, :, :1, :].contiguous().requires_grad_() for x in (q, k, v)]
    got = with_gradients(interval_attention(*inputs, last - last % 100, last), inputs, do[:, :, :1])
    alone = [x.detach().reshape(-1, 100, 1, 16).requires_grad_() for x in inputs]
    causal = torch.ones(1, 100, 100, dtype=torch.bool).tril()
    expected = with_gradients(by_mask(*alone, causal), alone, do[:, :, :1].reshape(-1, 100, 1, 16))
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x.reshape(y.shape), y)
