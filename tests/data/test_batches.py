from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import Batch, Batches, TokenStream, validation_batches
from zoo.errors import CorpusError, InputError

SEPARATOR = 256


@st.composite
def layouts(draw):
    """A stream whose token i is i (so a window shows where it starts), with a batch size and a context length."""
    context_length = draw(st.integers(1, 9))
    length = draw(st.integers(context_length + 1, 150))
    segment_ends = sorted(draw(st.sets(st.integers(1, length), max_size=3)) | {length})
    tokens = np.arange(length, dtype=np.uint16)
    segments = [part for part in np.split(tokens, segment_ends) if len(part)]
    return TokenStream(segments), draw(st.integers(1, 7)), context_length


def assert_equal(left: Batch, right: Batch) -> None:
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one, other)


@given(layouts(), st.integers(0, 5), st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_a_batch_depends_on_seed_and_step_alone(layout, seed, steps):
    stream, batch_size, context_length = layout
    batches = Batches(stream, batch_size, context_length, seed)
    for step in steps:
        assert_equal(batches.batch(step), Batches(stream, batch_size, context_length, seed).batch(step))


@given(layouts(), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_visits_every_window_once(layout, seed, epoch):
    stream, batch_size, context_length = layout
    batches = Batches(stream, batch_size, context_length, seed)
    windows = batches.windows_per_epoch
    first, last = epoch * windows, (epoch + 1) * windows
    rows = [
        row
        for step in range(first // batch_size, -(-last // batch_size))
        for place, row in enumerate(batches.batch(step).tokens, start=step * batch_size)
        if first <= place < last
    ]
    starts = sorted(int(row[0]) for row in rows)
    assert len(starts) == windows
    assert np.all(np.diff(starts) == context_length)
    assert 0 <= starts[0] < context_length or windows == 1
    assert len(stream) - (starts[-1] + context_length) >= 1
    assert windows * context_length > len(stream) - 2 * context_length


@given(layouts(), st.integers(0, 5), st.integers(0, 60))
def test_targets_are_the_tokens_shifted_by_one(layout, seed, step):
    stream, batch_size, context_length = layout
    batch = Batches(stream, batch_size, context_length, seed).batch(step)
    assert batch.tokens.shape == batch.targets.shape == batch.resets.shape == (batch_size, context_length)
    assert (batch.tokens.dtype, batch.targets.dtype, batch.resets.dtype) == (torch.int64, torch.int64, torch.bool)
    assert torch.equal(batch.targets, batch.tokens + 1)
    assert torch.equal(batch.tokens, batch.tokens[:, :1] + torch.arange(context_length))


@given(st.lists(st.integers(250, 256), min_size=8, max_size=80), st.integers(0, 20))
def test_resets_stand_exactly_at_separators(tokens, step):
    marked = Batches(TokenStream.of(tokens, SEPARATOR), 3, 5, 0).batch(step)
    assert torch.equal(marked.resets, marked.tokens == SEPARATOR)
    assert not Batches(TokenStream.of(tokens), 3, 5, 0).batch(step).resets.any()


@given(layouts(), st.integers(1, 4), st.integers(0, 40))
def test_the_ranks_together_are_the_single_process(layout, world_size, step):
    stream, share, context_length = layout
    size = share * world_size
    whole = Batches(stream, size, context_length, 1).batch(step)
    parts = [
        Batches(stream, size, context_length, 1, rank=rank, world_size=world_size).batch(step)
        for rank in range(world_size)
    ]
    assert_equal(whole, Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))))


def test_epochs_and_seeds_differ_in_order_and_offset():
    stream = TokenStream.of(np.arange(1000))
    starts = {
        (seed, epoch): tuple(int(Batches(stream, 1, 10, seed).batch(epoch * 99 + i).tokens[0, 0]) for i in range(99))
        for seed in range(3)
        for epoch in range(4)
    }
    assert Batches(stream, 1, 10, 0).windows_per_epoch == 99
    assert len(set(starts.values())) == 12
    assert len({order[0] % 10 for order in starts.values()}) > 3


@given(layouts(), st.integers(0, 200))
def test_validation_batches_are_even_windows_of_one_shape(layout, max_tokens):
    stream, batch_size, context_length = layout
    batches = validation_batches(stream, batch_size, context_length, max_tokens)
    for one, other in zip(batches, validation_batches(stream, batch_size, context_length, max_tokens), strict=True):
        assert_equal(one, other)
    available = (len(stream) - 1) // context_length
    rows = min(batch_size, available)
    assert {tuple(batch.tokens.shape) for batch in batches} == {(rows, context_length)}
    assert len(batches) == 1 or len(batches) * rows * context_length <= max_tokens
    starts = [int(row[0]) for batch in batches for row in batch.tokens]
    assert max(Counter(starts).values()) == 1
    gaps = np.diff(starts)
    assert np.all(gaps >= context_length)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= context_length
    assert all(torch.equal(batch.targets, batch.tokens + 1) for batch in batches)


def test_all_of_a_short_validation_stream_is_used():
    batches = validation_batches(TokenStream.of(np.arange(101)), 5, 10, 10_000)
    assert torch.equal(torch.cat([batch.tokens for batch in batches]).ravel(), torch.arange(100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"context_length": 0}, "context_length: expected 1 or more, got 0"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"world_size": 3}, "world_size: expected a divisor of batch_size 4, got 3"),
        ({"world_size": 0}, "world_size: expected a divisor of batch_size 4, got 0"),
        ({"rank": 2, "world_size": 2}, "rank: expected 0 to 1, got 2"),
    ],
)
def test_numbers_out_of_range_are_named(change, message):
    arguments = {"batch_size": 4, "context_length": 8, "seed": 0} | change
    with pytest.raises(InputError, match=message):
        Batches(TokenStream.of(range(50)), **arguments)


def test_a_negative_step_is_refused():
    with pytest.raises(InputError, match="step: expected 0 or more, got -1"):
        Batches(TokenStream.of(range(50)), 4, 8, 0).batch(-1)


def test_a_stream_too_short_for_the_context_is_refused():
    stream = TokenStream.of(range(8), name="validation data")
    message = "^validation data: 8 tokens are too few for context_length 8, which takes at least 9$"
    with pytest.raises(CorpusError, match=message):
        Batches(stream, 1, 8, 0)
    with pytest.raises(CorpusError, match=message):
        validation_batches(stream, 1, 8, 100)
