"""A variant of several runs: its best rate, and the mean over seeds there."""

from collections.abc import Callable

import pytest


def test_the_rate_is_chosen_on_one_half_and_told_on_the_other(make_variant: Callable, make_run: Callable) -> None:
    runs = [
        make_run(2.0, rate=1e-3).replace(choosing_bits=2.2, reported_bits=1.8),
        make_run(2.1, rate=4e-3).replace(choosing_bits=2.1, reported_bits=2.1),
    ]
    variant = make_variant("a", runs=tuple(runs))
    assert variant.learning_rates == (1e-3, 4e-3)
    assert variant.learning_rate == 4e-3
    assert variant.final_bits == 2.1
    alone = make_variant("a", runs=(runs[0],))
    assert alone.final_bits == 2.0  # nothing was chosen, so all of the text tells


def test_seeds_are_averaged(make_variant: Callable, make_run: Callable) -> None:
    variant = make_variant("a", runs=tuple(make_run(2 + seed / 10, seed=seed) for seed in range(3)))
    assert variant.losses == {0: 2.0, 1: 2.1, 2: 2.2}
    assert variant.final_bits == pytest.approx(2.1)
    assert variant.interval == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert variant.validation.bits[-1] == pytest.approx(2.1)
    low, high = variant.validation_range
    assert (low.bits[-1], high.bits[-1]) == pytest.approx((2.0, 2.2))
    assert variant.seconds == 60
    assert variant.compile_seconds == pytest.approx(3 * 14.2)


def test_curves_of_other_moments_meet_where_both_have_one(make_run: Callable, make_variant: Callable) -> None:
    long, short = make_run(2.0), make_run(2.2, seed=1)
    short = short.replace(validation=short.validation.at(short.validation.tokens[::2]))
    both = make_variant("a", runs=(long, short)).validation
    assert both.tokens == short.validation.tokens
    assert both.bits[-1] == pytest.approx(2.1)
