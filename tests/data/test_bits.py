import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import (
    ByteTokenizer,
    RawTokens,
    TokenStream,
    bigram_bits_per_byte,
    bits_per_byte,
    bytes_in,
    validation_batches,
)
from zoo.data import bits as bits_module
from zoo.errors import InputError

tokens = st.lists(st.integers(0, 6), min_size=6, max_size=120)


@given(tokens, tokens, st.integers(1, 4), st.integers(1, 5), st.sampled_from([3, 50]))
def test_bigram_equals_a_plain_count(train, validation, batch_size, context_length, chunk):
    tokenizer = RawTokens(7, separator=0)
    batches = validation_batches(TokenStream.of(validation, 0), batch_size, context_length, 60)
    pairs, singles = Counter(pairwise(train)), Counter(train[:-1])
    nats = byte_count = 0
    for batch in batches:
        for before, after in zip(batch.tokens.ravel().tolist(), batch.targets.ravel().tolist(), strict=True):
            nats -= math.log((pairs[before, after] + 1) / (singles[before] + 7))
            byte_count += after != 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits_module, "_CHUNK", chunk)
        if byte_count:
            found = bigram_bits_per_byte(TokenStream.of(train, 0), batches, tokenizer)
            assert found == pytest.approx(nats / math.log(2) / byte_count, rel=1e-12)
        else:
            with pytest.raises(InputError, match="byte_count"):
                bigram_bits_per_byte(TokenStream.of(train, 0), batches, tokenizer)


def test_separators_are_no_bytes():
    assert bytes_in(torch.tensor([[256, 104], [105, 256]]), ByteTokenizer()) == 2


def test_a_uniform_guess_over_256_costs_eight_bits():
    assert bits_per_byte(10 * math.log(256), 10) == pytest.approx(8)
