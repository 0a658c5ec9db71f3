"""Bits per byte: a loss that does not depend on the tokenizer, and the bigram model that every variant must beat."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zoo.data.batches import Batch, CountedBatch
from zoo.data.stream import TokenStream
from zoo.data.tokenizer import Tokenizer
from zoo.errors import InputError

__all__ = ["bigram_bits_per_byte", "bits_per_byte", "bytes_in", "bytes_of"]

_CHUNK = 2**20


def bytes_in(targets: Tensor, tokenizer: Tokenizer) -> int:
    """Return how many bytes of text `targets` (any shape, integer ids) stand for; a separator is none."""
    return round(float(tokenizer.byte_lengths[targets.cpu().numpy()].sum()))


def bytes_of(batch: Batch, tokenizer: Tokenizer) -> int:
    """Return how many bytes of text the targets of `batch` stand for, as the text itself has them where it is known."""
    return batch.byte_count if isinstance(batch, CountedBatch) else bytes_in(batch.targets, tokenizer)


def bits_per_byte(total_nats: float, byte_count: int) -> float:
    """Return a loss in bits per byte of text.

    Args:
        total_nats: sum of the negative log likelihoods of all targets, those of separators included, in nats.
        byte_count: bytes among the same targets, from `bytes_of`.

    Raises:
        InputError: there is not one byte.
    """
    if byte_count < 1:
        raise InputError(f"byte_count: expected 1 or more, got {byte_count}")
    return total_nats / math.log(2) / byte_count


def bigram_bits_per_byte(train: TokenStream, validation: Sequence[Batch], tokenizer: Tokenizer) -> float:
    """Return the bits per byte of a bigram model on the targets of `validation`, each predicted from the token before.

    The model is counted on `train` with add-one smoothing: `p(b | a) = (count(a, b) + 1) / (count(a) + vocab_size)`,
    where `count(a)` is how often `a` stands before another token.

    Raises:
        InputError: `validation` holds not one byte.
    """
    vocabulary = tokenizer.vocab_size
    before = np.concatenate([batch.tokens.numpy().ravel() for batch in validation])
    after = np.concatenate([batch.targets.numpy().ravel() for batch in validation])
    pair_counts, singles = _count_pairs(train, before * vocabulary + after, vocabulary)
    nats = np.log(singles[before] + vocabulary) - np.log(pair_counts + 1)
    return bits_per_byte(float(nats.sum()), sum(bytes_of(batch, tokenizer) for batch in validation))


def _count_pairs(
    stream: TokenStream, wanted: NDArray[np.int64], vocabulary: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count in `stream` the `wanted` pairs `[n]` (coded as first * vocabulary + second) and every first token."""
    # Only the pairs that are asked for are counted: a table of all would not fit for large vocabularies.
    pairs, places = np.unique(wanted, return_inverse=True)
    counts, singles = np.zeros(len(pairs) + 1, dtype=np.int64), np.zeros(vocabulary, dtype=np.int64)
    for start in range(0, len(stream) - 1, _CHUNK):
        tokens = stream[start : start + _CHUNK + 1].astype(np.int64)
        seen = tokens[:-1] * vocabulary + tokens[1:]
        slots = np.searchsorted(pairs, seen)
        slots[pairs.take(slots, mode="clip") != seen] = len(pairs)
        counts += np.bincount(slots, minlength=len(pairs) + 1)
        singles += np.bincount(tokens[:-1], minlength=vocabulary)
    return counts[places], singles
