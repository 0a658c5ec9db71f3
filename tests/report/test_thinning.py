"""Rows made short: some of the values, in their order, from the first to the last."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from zoo.report.thinning import evenly


@given(length=st.integers(0, 700), at_most=st.integers(2, 300))
def test_some_are_kept_evenly_with_both_ends(length: int, at_most: int) -> None:
    kept = evenly(range(length), at_most)
    assert len(kept) == min(length, at_most)
    if length:
        assert (kept[0], kept[-1]) == (0, length - 1)
    gaps = {after - before for before, after in pairwise(kept)}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)
