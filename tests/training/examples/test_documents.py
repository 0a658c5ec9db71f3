"""Rows of documents: each from its first token on, cut at a row's length, and no target twice."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import TokenStream
from zoo.training.examples.documents import document_rows, window_rows

SEPARATOR = 9
streams = st.lists(st.integers(0, SEPARATOR), min_size=1, max_size=120)


def documents(tokens: list[int]) -> list[list[int]]:
    """What a stream's documents are, each with the separators on both sides, as far as there are any."""
    starts = [place for place, token in enumerate(tokens) if token == SEPARATOR]
    return [tokens[start : end + 1] for start, end in zip(starts, [*starts, len(tokens) - 1][1:], strict=True)]


@given(tokens=streams, length=st.integers(1, 30))
def test_rows_hold_every_document_once(tokens, length):
    rows = document_rows(TokenStream.of(tokens, SEPARATOR), length, 10**6)
    found = []
    for inputs, targets, positions in zip(*rows, strict=True):
        assert len(inputs) == length
        assert (targets[positions < 0] == -100).all()
        starts = np.flatnonzero(positions == 0).tolist()
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            size = int((positions[start:end] >= 0).sum())
            assert positions[start : start + size].tolist() == list(range(size))
            found.append((inputs[start : start + size].tolist(), targets[start : start + size].tolist()))
    cut = [(document[:-1][:length], document[1:][:length]) for document in documents(tokens)]
    assert sorted(found) == sorted(pair for pair in cut if pair[0])


@given(tokens=streams, length=st.integers(1, 30), budget=st.integers(1, 60))
def test_of_many_documents_some_are_taken_evenly(tokens, length, budget):
    stream = TokenStream.of(tokens, SEPARATOR)
    rows, every = document_rows(stream, length, budget), document_rows(stream, length, 10**6)
    taken, there = int((rows.positions >= 0).sum()), int((every.positions >= 0).sum())
    assert taken <= there
    assert taken <= max(budget, length)
    assert (taken > 0) == (there > 0)


def test_a_row_takes_what_fits_behind_its_longest_document():
    tokens = [9, 1, 1, 1, 1, 9, 2, 9, 3, 3, 9, 4, 4, 4, 4, 4, 4, 4, 4, 9]
    rows = document_rows(TokenStream.of(tokens, SEPARATOR), 7, 10**6)
    assert rows.tokens.tolist() == [[9, 4, 4, 4, 4, 4, 4], [9, 1, 1, 1, 1, 9, 2], [9, 3, 3, 0, 0, 0, 0]]
    assert rows.targets.tolist() == [[4, 4, 4, 4, 4, 4, 4], [1, 1, 1, 1, 9, 2, 9], [3, 3, 9, -100, -100, -100, -100]]


@given(size=st.integers(1, 100), length=st.integers(1, 30), budget=st.integers(1, 100))
def test_windows_of_an_unmarked_stream_do_not_overlap(size, length, budget):
    rows = window_rows(TokenStream.of(np.arange(size)), length, budget)
    seen = rows.tokens[rows.positions >= 0]
    assert len(np.unique(seen)) == len(seen) <= max(budget, length)
    assert (rows.targets[rows.positions >= 0] == seen + 1).all()
