from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import TokenStream
from zoo.errors import InputError

bounds = st.none() | st.integers(-40, 40)


@given(st.lists(st.lists(st.integers(0, 65535), max_size=8), max_size=5), bounds, bounds)
def test_a_stream_reads_like_its_segments_joined(segments, start, stop):
    joined = [*chain(*segments)]
    stream = TokenStream([np.array(segment, dtype=np.uint16) for segment in segments])
    assert len(stream) == len(joined)
    read = stream[start:stop]
    assert read.dtype == np.uint16
    assert read.tolist() == joined[start:stop]


@given(st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=5), st.integers(0, 40), st.integers(0, 40))
def test_a_part_is_a_slice_over_the_same_memory(segments, start, length):
    arrays = [np.array(segment, dtype=np.uint16) for segment in segments]
    part = TokenStream(arrays, 7).part(start, start + length, name="part")
    assert part[:].tolist() == [*chain(*segments)][start : start + length]
    assert (part.separator, part.name) == (7, "part")


def test_ids_over_65535_are_uint32_and_mix_with_others():
    stream = TokenStream([np.array([1, 2], np.uint16), np.array([70000, 3], np.uint32)])
    assert (stream.dtype, stream[:1].dtype) == (np.uint32, np.uint32)
    assert stream[1:].tolist() == [2, 70000, 3]
    assert TokenStream.of([70000]).dtype == np.uint32
    assert TokenStream.of([65535]).dtype == np.uint16


def test_bytes_are_cut_with_their_tokens():
    counts = [np.array([3, 0, 2], np.uint32), np.array([5], np.uint32)]
    stream = TokenStream([np.arange(3, dtype=np.uint16), np.arange(1, dtype=np.uint16)], byte_counts=counts)
    assert stream.part(1, 4, name="part").byte_counts[:].tolist() == [0, 2, 5]


def test_a_slice_inside_a_segment_is_not_copied():
    array = np.arange(100, dtype=np.uint16)
    assert np.shares_memory(TokenStream([array])[10:20], array)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([2**32], "got 4294967296"),
        ([-1, 3], "got -1"),
        ([0.5], "expected integers, got float64"),
        ([[1, 2]], "one dimension"),
    ],
)
def test_tokens_must_be_one_row_of_uint32(tokens, message):
    with pytest.raises(InputError, match=message):
        TokenStream.of(tokens)


def test_segments_must_be_uint16_or_uint32():
    with pytest.raises(InputError, match=r"segments: expected uint16 or uint32 \[n\], got int64 \[3\]"):
        TokenStream([np.arange(3)])


def test_only_step_one():
    with pytest.raises(InputError, match="got step 2"):
        TokenStream.of(range(5))[::2]
