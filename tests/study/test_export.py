"""What is carried away of a study: all that a report takes, no weights, and enough to go on with it elsewhere."""

import shutil
from pathlib import Path

import pytest

from zoo.errors import CheckpointError, InputError, TrainingError
from zoo.recipe.study import Budget, Study
from zoo.study import run_study
from zoo.study.export import export_study
from zoo.study.pace import Pace
from zoo.study.report import report_study

from .fakes import FakeTraining

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def several(study: Study) -> Study:
    return study.replace(seeds=2, variants={"a": (), "b": ("mixer=power",)})


def paced(folder: Path, seconds_per_step: float, *variants: str) -> None:
    for variant in variants:
        (folder / variant).mkdir(parents=True, exist_ok=True)
        pace = Pace(seconds_per_step=seconds_per_step, timed_steps=3, compile_seconds=0.0)
        (folder / variant / "pace.yaml").write_text(pace.to_yaml())


def test_a_report_of_what_was_exported_is_that_of_all(several: Study, training: FakeTraining, tmp_path: Path) -> None:
    budgeted = several.replace(budgets=(Budget(tokens=10**4), Budget(tokens=3 * 10**4)))
    expected = run_study(budgeted, tmp_path / "whole", progress=False)
    run = tmp_path / "whole" / "tokens-10000" / "a" / "rate-0.004-seed-0"
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "weights").write_bytes(bytes(1000))
    found = export_study([tmp_path / "whole"], tmp_path / "kept")
    assert (found.runs, found.planned) == (8, 8)
    files = sorted(path for path in (tmp_path / "kept").rglob("*") if path.is_file())
    assert found.byte_count == sum(path.stat().st_size for path in files)
    kinds = {"study.yaml", "recipe.yaml", "setting.json", "result.json", "metrics.jsonl", "machine.yaml"}
    assert {path.name for path in files} == kinds
    shutil.rmtree(tmp_path / "whole")
    (tmp_path / "text.txt").unlink()
    (tmp_path / "small.yaml").unlink()
    reported = report_study([tmp_path / "kept"], tmp_path / "page")
    assert [each.replace(date="") for each in reported] == [each.replace(date="") for each in expected]
    assert (tmp_path / "page" / "index.html").is_file()


def test_a_study_goes_on_from_what_was_exported(several: Study, training: FakeTraining, tmp_path: Path) -> None:
    training.fails["rate-0.004-seed-1"] = TrainingError("the machine goes away")
    with pytest.raises(TrainingError):
        run_study(several, tmp_path / "first", progress=False)
    assert export_study([tmp_path / "first"], tmp_path / "kept").runs == 1
    assert not (tmp_path / "kept" / "a" / "rate-0.004-seed-1").exists()  # had begun, and has no weights to go on with
    training.fails.clear()
    training.trained.clear()
    shutil.copytree(tmp_path / "kept", tmp_path / "second")
    (whole,) = run_study(several, tmp_path / "second", progress=False)
    assert len(training.trained) == 3
    assert export_study([tmp_path / "second"], tmp_path / "kept").runs == 4
    (reported,) = report_study([tmp_path / "kept"], tmp_path / "page")
    assert reported.replace(date="") == whole.replace(date="")


def test_each_machine_has_its_own_pace(several: Study, training: FakeTraining, tmp_path: Path) -> None:
    timed = several.replace(budget=Budget(seconds=1.0))
    for name, seconds in (("one", 0.1), ("other", 0.04)):
        paced(tmp_path / name, seconds, "a", "b")
    run_study(timed, tmp_path / "one", progress=False, only=["*seed-0"])
    run_study(timed, tmp_path / "other", progress=False, only=["*seed-1"])
    (both,) = report_study([tmp_path / "one", tmp_path / "other"], tmp_path / "both")
    assert both.waiting == {}
    last = [run.validation.tokens[-1] // both.batch_tokens for run in both.variants[0].runs]
    assert last == [10, 25]
    export_study([tmp_path / "one"], tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"other: a was timed at another pace than in .*kept; keep them apart, "):
        export_study([tmp_path / "other"], tmp_path / "kept")


def test_what_does_not_belong_together_is_refused(several: Study, training: FakeTraining, tmp_path: Path) -> None:
    run_study(several, tmp_path / "one", progress=False)
    export_study([tmp_path / "one"], tmp_path / "kept")
    run_study(several.replace(seeds=1), tmp_path / "fewer", progress=False)
    with pytest.raises(CheckpointError, match=r"fewer: holds another study than .*kept; "):
        export_study([tmp_path / "fewer"], tmp_path / "kept")
    (tmp_path / "text.txt").write_text("another text, line by line\n" * 2000)
    run_study(several, tmp_path / "elsewhere", progress=False)
    with pytest.raises(CheckpointError, match=r"elsewhere: was trained on another corpus than .*kept \(sha256 "):
        export_study([tmp_path / "elsewhere"], tmp_path / "kept")
    with pytest.raises(InputError, match=r"^output: .*one is one of the folders to export; name another$"):
        export_study([tmp_path / "one"], tmp_path / "one")
    with pytest.raises(InputError, match=r"^folders: expected at least one$"):
        export_study([], tmp_path / "kept")
    damaged = tmp_path / "one" / "a" / "rate-0.004-seed-0" / "metrics.jsonl"
    damaged.write_text(damaged.read_text().replace("8.0", "2.0", 1))
    with pytest.raises(CheckpointError, match=r"metrics.jsonl"):
        export_study([tmp_path / "one"], tmp_path / "new")
