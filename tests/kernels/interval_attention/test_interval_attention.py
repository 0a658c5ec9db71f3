"""Attention of queries to intervals of keys, held to the mask that the intervals stand for."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.interval_attention import interval_attention
from zoo.kernels.interval_attention.blocks import attend
from zoo.kernels.interval_attention.flex import BLOCK, mask_tensors

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


def listed(counts: Tensor, places: Tensor, columns: int) -> Tensor:
    """A block mask's lists of one kind as `[B, N, columns]` bool; none names a block twice."""
    dense = torch.zeros(*counts[:, 0].shape, columns, dtype=torch.bool)
    for row, block in torch.ones_like(counts[:, 0]).nonzero().tolist():
        named = places[row, 0, block, : counts[row, 0, block]].tolist()
        assert len(set(named)) == len(named)
        dense[row, block, named] = True
    return dense


@given(intervals(lengths=(128, 384, 640)))
def test_a_block_mask_lists_each_block_that_is_seen(seen: Intervals) -> None:
    query_blocks, key_blocks = seen.first.shape[1] // BLOCK, -(-seen.keys // BLOCK)
    _, _, *lists = mask_tensors(seen.first.int(), seen.last.int(), key_blocks)
    visible = F.pad(seen.visible, (0, key_blocks * BLOCK - seen.keys))
    pairs = visible.unflatten(1, (query_blocks, BLOCK)).unflatten(3, (key_blocks, BLOCK))
    part, whole = (listed(*lists[i : i + 2], key_blocks) for i in (0, 2))
    assert torch.equal(part | whole, pairs.any(4).any(2))
    assert torch.equal(whole, pairs.all(4).all(2))
    assert not (part & whole).any()
    assert torch.equal(part.mT, listed(*lists[4:6], query_blocks))
    assert torch.equal(whole.mT, listed(*lists[6:], query_blocks))


@settings(max_examples=5)
@given(intervals(lengths=(128, 384)))
def test_the_lists_are_an_op_as_it_should_be(seen: Intervals) -> None:
    torch.library.opcheck(mask_tensors, (seen.first.int(), seen.last.int(), -(-seen.keys // BLOCK)))


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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=6)
@given(seen=intervals(lengths=(1, 129, 300, 1000)))
def test_on_a_gpu_intervals_err_as_a_mask_does(seen: Intervals, dtype: torch.dtype, compiled: bool) -> None:
    rows, tokens = seen.first.shape
    *inputs, do = tensors(tokens, seen.keys, rows, dtype, "cuda")
    first, last = seen.first.cuda(), seen.last.cuda()
    visible = seen.visible.cuda()
    inputs = [x.requires_grad_() for x in inputs]
    function = torch.compile(interval_attention, fullgraph=True) if compiled else interval_attention
    with torch._dynamo.config.patch(recompile_limit=256):  # one function for all examples and tests
        got = with_gradients(function(*inputs, first, last), inputs, do)
    plain = with_gradients(by_mask(*inputs, visible), inputs, do)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = with_gradients(by_mask(*exact, visible), exact, do.double())
    for x, y, z in zip(got, plain, expected, strict=True):
        unit = torch.finfo(dtype).eps * max(z.norm(), do.norm())  # of what cancels where a query sees one key
        assert (x.double() - z).norm() <= 1.5 * (y.double() - z).norm() + unit


@pytest.mark.gpu
def test_on_a_gpu_many_kinds_of_call_never_make_all_pairs() -> None:
    """More than the compiler's usual limit; past it FlexAttention would warn that it makes them."""
    for tokens, older in ((1, 0), (1, 128), (100, 0), (128, 0), (300, 0), (384, 1)):
        for dtype in (torch.bfloat16, torch.float16):
            q, k, v, _ = (x.cuda() for x in tensors(tokens, tokens + older, 1, dtype))
            last = torch.arange(older, older + tokens, device="cuda")[None]
            expected = by_mask(q, k, v, Intervals(torch.zeros_like(last), last, tokens + older).visible)
            found = interval_attention(q, k, v, torch.zeros_like(last), last)
            torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("T", [128, 300])
def test_on_a_gpu_bounds_that_follow_from_places_compile(T: int) -> None:
    """As those of a window over sequences that nothing cuts."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(T, device="cuda")[None]
        return interval_attention(q, k, v, (place - 31).clamp(min=0), place)

    inputs = [torch.randn(4, T, 2, 32, device="cuda", requires_grad=True) for _ in range(3)]
    found, expected = torch.compile(attend, fullgraph=True)(*inputs), attend(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    torch.autograd.grad(found.square().sum(), inputs)


@pytest.mark.gpu
def test_on_a_gpu_memory_is_linear_in_the_length() -> None:
    peaks = []
    for tokens in (16384, 65536):
        *inputs, do = tensors(tokens, tokens, 1, torch.bfloat16, "cuda")
        inputs = [x.requires_grad_() for x in inputs]
        position = torch.arange(tokens, device="cuda")[None]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with_gradients(interval_attention(*inputs, position // 5000 * 5000, position), inputs, do)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= 5 * peaks[0]  # four times the tokens
