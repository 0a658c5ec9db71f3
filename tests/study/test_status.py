"""How far a study is, while it runs and after."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from zoo.errors import DivergenceError, TrainingError
from zoo.recipe.study import Study
from zoo.study import run_study
from zoo.study.progress import StudyProgress, overall
from zoo.study.resolve import resolve_study
from zoo.study.status import RunProgress, StudyStatus, look
from zoo.study.status_table import print_status
from zoo.training.run import RunFolder

from .fakes import FakeTraining


@pytest.mark.usefixtures("undrawn")
def test_every_run_has_a_state(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    training.fails = {"linear": DivergenceError("step 2: the loss is nan"), "power": TrainingError("no memory")}
    with pytest.raises(TrainingError):
        run_study(study, tmp_path, progress=False)
    with RunFolder(tmp_path / "gated-power").locked():
        status = look(resolve_study(study, tmp_path), tmp_path)
    assert [run.state for run in status.runs] == ["done", "diverged", "waiting", "running"]
    assert [(run.step, run.steps) for run in status.runs] == [(3, 3), (0, 3), (0, 3), (0, 3)]
    assert overall(status).startswith("2 of 4 runs done, 1 diverged, 1 in training, 0:0")
    assert status.seconds_left == pytest.approx(2 * 3 * 0.1, rel=0.1)  # a step of softmax took 0.1 s


def test_time_left_is_that_of_training_alone_and_by_operations_where_nothing_ran() -> None:
    runs = (
        RunProgress("a", "a", "done", 10, 10, 20.0),
        RunProgress("b", "b", "running", 5, 10, 5.0),
        RunProgress("c", "c", "waiting", 0, 10, 0.0),
    )
    status = StudyStatus(runs, {"a": 2.0, "b": 1.0, "c": 3.0})
    assert status.seconds_left == pytest.approx(5 * 1.0 + 10 * 3.0)
    assert StudyStatus(runs[2:], {"c": 3.0}).seconds_left is None


def test_a_line_that_is_not_whole_is_no_progress(study: Study, tmp_path: Path) -> None:
    (tmp_path / "softmax").mkdir()
    (tmp_path / "softmax" / "metrics.jsonl").write_text('{"kind": "train", "step": 2, "seconds": 0.5}\n{"kind": "tr')
    status = look(resolve_study(study), tmp_path)
    assert (status.runs[0].step, status.runs[0].seconds) == (2, 0.5)


def test_the_operations_of_a_model_are_counted_once(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.study import budget

    parts = resolve_study(study.overridden(["model.layers=1"]).replace(seeds=2, learning_rates=(1e-3, 2e-3)))
    first = look(parts, Path("nowhere"))
    monkeypatch.setattr(budget, "build", None)
    assert look(parts, Path("nowhere")).step_flops == first.step_flops


def test_nothing_vanishes_in_eighty_columns() -> None:
    name = "a-long-name-of-a-variant with=options/rate-0.0015-seed-2"
    runs = (RunProgress(name, name, "running", 123_456, 1_000_000, 5.0),)
    status = StudyStatus(runs, {name: 1.0})
    console = Console(file=StringIO(), width=80, force_terminal=True, color_system=None)
    with StudyProgress("a-study", console) as progress:
        progress.show(status, "loss 2.345  validation 2.345  123,456 tokens/s")
    text = "".join(console.file.getvalue().split())
    for expected in (name, "123,456/1,000,000", "0of1rundone", "1intraining", "123,456tokens/s"):
        assert "".join(expected.split()) in text

    console = Console(file=StringIO(), width=80, color_system=None)
    print_status("a-study", status, console)
    assert f"{name}: step 123,456 of 1,000,000" in console.file.getvalue()
