"""A budget of seconds: a step is timed once, in the process that trains, and all runs have that many steps."""

from pathlib import Path

import pytest

from zoo.recipe.study import Budget, Study
from zoo.study import run_study
from zoo.study.pace import Pace, find_pace, read_pace
from zoo.study.variants import Part
from zoo.training import read_metrics

from .fakes import FakeTraining


@pytest.fixture
def timed(study: Study) -> Study:
    uncompiled = study.overridden(["training.compile=false", "model.layers=1"])
    return uncompiled.replace(budget=Budget(seconds=0.3), variants={"a": ("mixer=linear",)}, seeds=2)


@pytest.mark.usefixtures("undrawn")
def test_every_run_of_a_variant_has_the_steps_of_its_pace(timed: Study, tmp_path: Path) -> None:
    (summary,) = run_study(timed, tmp_path, progress=False)
    pace = read_pace(tmp_path / "a")
    assert pace is not None
    assert pace.timed_steps >= 3
    steps = max(1, round(0.3 / pace.seconds_per_step))
    for seed in (0, 1):
        last = read_metrics(tmp_path / "a" / f"rate-0.004-seed-{seed}" / "metrics.jsonl")[-1]
        assert last["step"] == steps
    assert (summary.steps, summary.budget, summary.budget_kind) == (steps, "0.3 s of training", "seconds")
    assert "Each variant's step was timed before its first run" in (tmp_path / "index.html").read_text().replace(
        "&#x27;", "'"
    )


@pytest.mark.usefixtures("undrawn")
def test_what_was_timed_is_not_timed_again(
    timed: Study, training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace(seconds_per_step=0.03, timed_steps=3, compile_seconds=0.0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "pace.yaml").write_text(pace.to_yaml())
    monkeypatch.setattr("zoo.study.pace._measure", None)
    (summary,) = run_study(timed, tmp_path, progress=False)
    assert summary.steps == 10
    assert [run.validation.tokens[-1] for run in summary.variants[0].runs] == 2 * [10 * summary.batch_tokens]


def test_one_process_at_a_time_measures(timed: Study, tmp_path: Path) -> None:
    from zoo.errors import InUseError
    from zoo.report.files import locked
    from zoo.study.resolve import resolve_study

    part: Part = resolve_study(timed)[0]
    with locked(tmp_path / "a", "measures the pace"), pytest.raises(InUseError):
        find_pace(part.variants[0], tmp_path, None, None, None)
