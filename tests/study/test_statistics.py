"""Intervals and tests over seeds, held to SciPy's own."""

from statistics import fmean

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from zoo.study.statistics import compare, half_interval

losses = st.lists(st.floats(1, 9), min_size=2, max_size=8).filter(lambda values: max(values) - min(values) > 1e-3)


@given(losses)
def test_an_interval_is_students(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=fmean(values), scale=stats.sem(values))
    assert 2 * half_interval(values) == pytest.approx(high - low)


def test_one_value_has_no_interval() -> None:
    assert half_interval([2.0]) is None


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(1, 9)), min_size=2, max_size=8))
def test_a_pair_is_tested_seed_by_seed(pairs: list[tuple[float, float]]) -> None:
    values, others = zip(*pairs, strict=True)
    differences = [other - value for value, other in pairs]
    assume(max(differences) - min(differences) > 1e-3)
    (found,) = compare({"a": dict(enumerate(values)), "b": dict(enumerate(others))})
    assert found.mean == pytest.approx(fmean(differences))
    assert found.p == pytest.approx(stats.ttest_rel(others, values).pvalue, rel=1e-6)
    assert found.is_clear == (found.p < 0.05)


def test_more_pairs_make_each_less_clear() -> None:
    a, b = {0: 2.0, 1: 2.1, 2: 2.2}, {0: 2.5, 1: 2.65, 2: 2.7}
    (alone,) = compare({"a": a, "b": b})
    among = {(each.first, each.second): each.p for each in compare({"a": a, "b": b, "c": {0: 2.2, 1: 1.9, 2: 2.4}})}
    assert among["a", "b"] == pytest.approx(3 * alone.p)
    assert max(among.values()) <= 1
    assert among["a", "c"] >= among["a", "b"]


def test_only_shared_seeds_count_and_equal_variants_are_not_distinguishable() -> None:
    assert compare({"a": {0: 2.0, 1: 2.1}, "b": {1: 2.0, 2: 2.1}}) == []
    (same,) = compare({"a": {0: 2.0, 1: 2.1}, "b": {0: 2.0, 1: 2.1}})
    assert same.p == 1
    assert not same.is_clear
