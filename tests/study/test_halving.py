"""Successive halving: which rates go on, from what is in the folder alone."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.recipe.study import Study
from zoo.recipe.training import TrainingConfig
from zoo.study import run_study
from zoo.study.halving import read_stop, rungs

from .fakes import FakeTraining

RATES = (1e-3, 2e-3, 4e-3, 8e-3)


@given(steps=st.integers(1, 5000), every=st.integers(1, 500), rates=st.integers(1, 64))
def test_rungs_are_evaluations_before_the_end(steps: int, every: int, rates: int) -> None:
    found = rungs(TrainingConfig(steps=steps, evaluate_every=every, checkpoint_every=2 * every), rates)
    assert found == sorted(set(found))
    assert all(0 < rung < steps and rung % every == 0 for rung in found)
    assert (2 ** len(found)) < 2 * rates or len(found) == 0


@pytest.mark.usefixtures("undrawn")
def test_hopeless_rates_are_given_up_from_every_seed(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    training.penalty = lambda recipe: abs(recipe.training.learning_rate - 2e-3) * 100
    several = study.overridden(["training.steps=8", "training.evaluate_every=2", "training.checkpoint_every=2"])
    several = several.replace(seeds=2, learning_rates=RATES, variants={"a": ()})
    (summary,) = run_study(several, tmp_path, progress=False, early_stop=True)
    (variant,) = summary.variants
    assert variant.learning_rates == (2e-3,)
    assert summary.unfinished == ()
    assert sorted({stop.learning_rate for stop in summary.stopped}) == [1e-3, 4e-3, 8e-3]
    assert len(summary.stopped) == 6
    stop = read_stop(tmp_path / "a" / "rate-0.008-seed-0")
    assert stop is not None
    assert stop.message.startswith("after step 2 at ")
    assert training.trained.count("rate-0.008-seed-0") == 1
    assert training.trained.count("rate-0.008-seed-1") == 0
    assert training.trained.count("rate-0.002-seed-0") == 3  # to both rungs, and to the end
    page = (tmp_path / "index.html").read_text()
    assert "Stopped early, by successive halving of the learning rates: a at 0.001, 0.004, 0.008." in page

    trained = len(training.trained)
    run_study(several, tmp_path, progress=False, early_stop=True)
    assert len(training.trained) == trained


@pytest.mark.usefixtures("undrawn")
def test_without_the_option_every_rate_is_trained(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    (summary,) = run_study(study.replace(learning_rates=RATES, variants={"a": ()}), tmp_path, progress=False)
    assert summary.stopped == ()
    assert len(training.trained) == 4
