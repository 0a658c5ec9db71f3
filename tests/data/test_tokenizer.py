import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import ByteTokenizer, RawTokens, load_tokenizer
from zoo.errors import ConfigError, InputError


@given(st.text())
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert ids.tolist() == list(text.encode())
    assert np.array_equal(ids, tokenizer.encode(text.encode()))
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == tokenizer.decode(torch.from_numpy(ids)) == text


def test_decode_drops_separators_and_replaces_what_is_not_utf8():
    assert ByteTokenizer().decode([256, 104, 105, 256, 0xFF]) == "hi\ufffd"
    assert ByteTokenizer().decode([]) == ""


@given(st.lists(st.integers(0, 99)))
def test_raw_tokens_round_trip(ids):
    tokenizer = RawTokens(100)
    assert tokenizer.encode(tokenizer.decode(ids)).tolist() == ids


def test_raw_tokens_drop_separators():
    tokenizer = RawTokens(100, separator=99)
    assert tokenizer.decode([99, 3, 99, 98]) == "3 98"
    assert tokenizer.byte_lengths.sum() == 99


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([257], "expected 0 to 256, got 257"),
        ([-1], "got -1"),
        ([[1]], "one dimension"),
        ([0.5], "expected integers"),
    ],
)
def test_decode_names_what_it_cannot_read(ids, message):
    with pytest.raises(InputError, match=message):
        ByteTokenizer().decode(ids)


def test_raw_tokens_read_numbers_only():
    with pytest.raises(InputError, match="expected token ids between spaces"):
        RawTokens(10).encode("once upon a time")


def test_an_unknown_tokenizer_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'byte' is neither .* \(did you mean 'bytes'\?\)$"):
        load_tokenizer("byte")
