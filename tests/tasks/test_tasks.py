"""Every task: what it asks has one answer, an exact solver finds it, and chance scores chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import ConfigError
from zoo.kernels.targets import IGNORED
from zoo.tasks import Case, Sequences, Task, tasks
from zoo.tasks.copying import Copying
from zoo.tasks.induction import Induction
from zoo.tasks.mqar import Mqar
from zoo.tasks.parity import Parity
from zoo.tasks.passkey import Passkey
from zoo.tasks.s5 import S5

from .solvers import SOLVERS

every_task = pytest.mark.parametrize("kind", tasks)
seeds = st.integers(0, 2**32)


@st.composite
def some_task(draw: st.DrawFn, kind: str) -> Task:
    """A task of one short length, with options of its own."""
    length = 2 * draw(st.integers(12, 40))
    of_length = {"train_lengths": (length,), "test_lengths": (length,)}
    options = {
        "mqar": lambda: {
            "pairs": draw(st.none() | st.integers(1, length // 4)),
            "vocab_size": draw(st.integers(length, 200)),
            "power": draw(st.floats(0.01, 1)),
        },
        "copy": lambda: {"symbols": draw(st.integers(2, 50))},
        "induction": lambda: {"vocab_size": draw(st.integers(3, 50))},
        "passkey": lambda: {"digits": draw(st.integers(1, 8)), "depths": (draw(st.floats(0, 1)),)},
        "parity": dict,
        "s5": dict,
    }[kind]()
    return tasks[kind](**of_length, **options)


def asked(sequences: Sequences) -> np.ndarray:
    return sequences.targets != IGNORED


@every_task
@given(data=st.data(), seed=seeds)
def test_an_exact_solver_finds_every_answer_and_no_question_is_missed(kind, data, seed):
    task = data.draw(some_task(kind))
    case = data.draw(st.sampled_from([*task.training_cases(), *task.test_cases(task.test_lengths)]))
    sequences = task.draw(case, 3, np.random.default_rng(seed))
    for row, targets in zip(sequences.tokens.tolist(), sequences.targets, strict=True):
        places = np.flatnonzero(targets != IGNORED).tolist()
        answers = SOLVERS[kind](task, case, row)
        assert [answers.get(place) for place in places] == targets[places].tolist()
        if kind != "mqar":  # whose random tokens may be keys that are not asked
            assert sorted(answers) == places


@every_task
@given(data=st.data(), seed=seeds)
def test_sequences_are_of_the_vocabulary_and_answers_stand_where_distances_say(kind, data, seed):
    task = data.draw(some_task(kind))
    case = data.draw(st.sampled_from([*task.training_cases(), *task.test_cases(task.test_lengths)]))
    tokens, targets, distances = sequences = task.draw(case, 4, np.random.default_rng(seed))
    assert tokens.shape == targets.shape == distances.shape == (4, case.length)
    assert {array.dtype for array in sequences} == {np.dtype(np.int64)}
    where = asked(sequences)
    assert where.any(axis=1).all()
    for ids in (tokens, targets[where]):
        assert 0 <= ids.min() <= ids.max() < task.vocabulary
    assert (distances[~where] == 0).all()
    assert (distances[where] >= 1).all()
    rows, places = np.nonzero(where)
    if kind in ("parity", "s5"):
        assert (distances[where] == places + 1).all()
    else:
        assert (tokens[rows, places - distances[where]] == targets[where]).all()


@every_task
@given(seed=seeds)
def test_a_sequence_does_not_depend_on_how_many_are_drawn_before_others(kind, seed):
    task = tasks[kind]()
    case = task.training_cases()[0]
    one, other = (task.draw(case, 3, np.random.default_rng(seed)) for _ in range(2))
    assert all(map(np.array_equal, one, other))
    assert len(np.unique(one.tokens, axis=0)) == 3
    assert task.draw(case, 0, np.random.default_rng(seed)).tokens.shape == (0, case.length)


CHANCE = {"mqar": 1 / 4096, "copy": 1 / 26, "induction": 1 / 15, "passkey": 1 / 10, "parity": 1 / 2, "s5": 1 / 120}


@every_task
def test_chance_scores_chance(kind):
    """No answer is likelier than another: whatever is always said is right as often as the answers are many."""
    task = tasks[kind]()
    case = task.training_cases()[0]
    sequences = task.draw(case, 30_000 if kind == "induction" else 2_000, np.random.default_rng(1))
    answers = sequences.targets[asked(sequences)]
    counts = np.bincount(answers, minlength=task.vocabulary)
    expected = len(answers) * CHANCE[kind]
    assert np.count_nonzero(counts) <= round(1 / CHANCE[kind])
    assert np.abs(counts[counts > 0] - expected).max() < 6 * expected**0.5 + 3


@given(pairs=st.integers(1, 20), seed=seeds)
def test_keys_and_values_of_mqar_are_unique(pairs, seed):
    task = Mqar(train_lengths=(80,), test_lengths=(80,), pairs=pairs, vocab_size=42)
    tokens = task.draw(Case(80, pairs=pairs), 5, np.random.default_rng(seed)).tokens
    for row in tokens[:, : 2 * pairs]:
        keys, values = set(row[::2].tolist()), set(row[1::2].tolist())
        assert len(keys) == len(values) == pairs
        assert 1 <= min(keys) <= max(keys) < 21 <= min(values) <= max(values) < 42


def test_every_pair_of_mqar_is_asked_once():
    task = Mqar()
    sequences = task.draw(Case(256, pairs=64), 20, np.random.default_rng(0))
    for row, targets in zip(sequences.tokens, sequences.targets, strict=True):
        assert sorted(targets[targets != IGNORED]) == sorted(row[1:128:2])


def test_gaps_of_mqar_follow_the_power_law():
    """The first key's gap is drawn alone: its frequencies are the weights."""
    task = Mqar(power=0.01)
    gaps = task._gaps(np.random.default_rng(0), 10, 50_000, 10)
    assert (np.sort(gaps, axis=1) == np.arange(10)).all()
    weights = np.arange(1, 11) ** (0.01 - 1)
    found = np.bincount(gaps[:, 0], minlength=10) / len(gaps)
    np.testing.assert_allclose(found, weights / weights.sum(), atol=0.01)


def test_the_settings_are_those_that_zoology_publishes():
    task = Mqar()
    pairs = [(case.length, case.pairs) for case in task.training_cases()]
    assert pairs == [(64, 4), (128, 8), (256, 16), (256, 32), (256, 64)]
    pairs = [(case.length, case.pairs) for case in task.test_cases(task.test_lengths)]
    assert pairs == [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
    assert task.vocabulary == 8192


def test_a_passkey_stands_as_deep_as_it_is_said():
    task = Passkey(digits=2)
    for depth, place in ((0.0, 0), (0.5, 22), (1.0, 45)):
        row = task.draw(Case(50, depth=depth), 1, np.random.default_rng(0)).tokens[0].tolist()
        assert row.index(10) == place


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        (Mqar, {"pairs": 17}, "train_lengths: must be at least 4 tokens a pair, 68 for pairs 17, got 64"),
        (Mqar, {"vocab_size": 64}, "train_lengths: must not take more pairs than vocab_size 64 has keys, 31, got 128"),
        (Mqar, {"pairs": 0}, "pairs: must be greater than or equal to 1, got 0"),
        (Copying, {"train_lengths": (33,)}, "train_lengths: must be even, for a string and its copy, got 33"),
        (Copying, {"symbols": 2, "test_lengths": (8,)}, "test_lengths: must be of more than 256 different sequences"),
        (Passkey, {"test_lengths": (11,)}, "test_lengths: must be at least 12, for 5 digits twice and marks, got 11"),
        (Passkey, {"depths": (0.5, 0.5)}, "depths: 0.5 stands 2 times"),
        (Parity, {"train_lengths": (7,)}, "train_lengths: must be of more than 256 different sequences, some of which"),
        (Parity, {"train_lengths": (8, 16, 8)}, "train_lengths: 8 stands 2 times"),
        (S5, {"test_lengths": (2,)}, r"test_lengths\.0: must be greater than or equal to 4, got 2"),
        (Induction, {"vocab_size": 2}, "vocab_size: must be greater than or equal to 3, got 2"),
        (Induction, {"train_lengths": ()}, "train_lengths: "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(task, options, said):
    with pytest.raises(ConfigError, match=said):
        task(**options)
