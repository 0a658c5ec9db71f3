"""Rows of sequences: a number and a seed say which, and no sequence is on both sides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.kernels.targets import IGNORED
from zoo.tasks import Case, held_back_rows, held_back_sequences, tasks, training_rows
from zoo.tasks.copying import Copying
from zoo.tasks.draws import is_held_back
from zoo.tasks.parity import Parity

every_task = pytest.mark.parametrize("kind", tasks)


@every_task
@given(seed=st.integers(0, 2**62), number=st.integers(0, 2**40))
def test_a_batch_is_its_seed_and_number(kind, seed, number):
    task = tasks[kind]()
    batch = training_rows(task, 3, 256, seed, number)
    assert all(map(np.array_equal, batch, training_rows(task, 3, 256, seed, number)))
    assert not np.array_equal(batch.tokens, training_rows(task, 3, 256, seed, number + 1).tokens)
    assert not np.array_equal(batch.tokens, training_rows(task, 3, 256, seed + 1, number).tokens)


@given(length=st.integers(20, 70), number=st.integers(0, 9))
def test_rows_hold_whole_sequences_and_nothing_else(length, number):
    task = Copying(train_lengths=(12, 20), test_lengths=(12,))
    tokens, targets, starts = training_rows(task, 5, length, 0, number)
    assert tokens.shape == targets.shape == starts.shape == (5, length)
    for row in range(5):
        places = [*np.flatnonzero(starts[row]).tolist(), length]
        sizes = np.diff(places)
        size = sizes[0]
        assert places[0] == 0
        assert size in (12, 20)
        assert len(sizes) == -(-length // size)
        for start in places[: length // size]:
            string = tokens[row, start : start + size // 2]
            assert (targets[row, start + size // 2 : start + size] == string).all()
        behind = length // size * size
        assert (tokens[row, behind:] == 0).all()
        assert (targets[row, behind:] == IGNORED).all()


def test_cases_have_equal_chances_of_a_row():
    task = Copying(train_lengths=(12, 20, 28), test_lengths=(12,))
    starts = training_rows(task, 3_000, 28, 0, 0).starts
    counts = [starts[:, length].sum() for length in (12, 20)]
    assert counts == [pytest.approx(1_000, abs=130)] * 2


@every_task
def test_training_and_test_sequences_do_not_overlap(kind):
    task = tasks[kind]()
    case = task.test_cases(task.test_lengths)[0]
    sequences = held_back_sequences(task, case, 50).tokens
    assert sequences.shape == (50, case.length)
    assert is_held_back(sequences).all()
    assert np.array_equal(sequences, held_back_sequences(task, case, 50).tokens)
    for rows, is_test in ((training_rows(task, 4, 256, 0, 0), False), (held_back_rows(task, 4, 256, 0), True)):
        for row, starts in zip(rows.tokens, rows.starts, strict=True):
            size = int(np.flatnonzero([*starts[1:], True])[0]) + 1
            for start in range(0, 256 // size * size, size):
                assert is_held_back(row[None, start : start + size])[0] == is_test


def test_a_small_space_is_parted_whole():
    """All 256 sequences of 8 bits: about an eighth is never trained on, and nothing else is tested on."""
    task = Parity(train_lengths=(8,), test_lengths=(8,))
    trained = {tuple(row) for row in training_rows(task, 4_000, 8, 0, 0).tokens.tolist()}
    tested = {tuple(row) for row in held_back_sequences(task, Case(8), 4_000).tokens.tolist()}
    assert not trained & tested
    assert len(trained | tested) == 256
    assert 16 <= len(tested) <= 48


def test_tests_are_the_same_for_every_seed_and_batch_number_apart():
    task = tasks["s5"]()
    assert not np.array_equal(held_back_rows(task, 2, 64, 0).tokens, held_back_rows(task, 2, 64, 1).tokens)
    assert np.array_equal(held_back_rows(task, 2, 64, 1).tokens, held_back_rows(task, 2, 64, 1).tokens)
