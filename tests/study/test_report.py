"""Reports from what is there: of an unfinished study, of several folders, without text or weights."""

import json
import shutil
from pathlib import Path

import pytest

from zoo.errors import CheckpointError, TrainingError
from zoo.recipe.study import Study
from zoo.study import run_study
from zoo.study.measure import _measures
from zoo.study.report import report_study

from .fakes import FakeTraining

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def several(study: Study) -> Study:
    return study.replace(seeds=2, variants={"a": (), "b": ("mixer=power",)})


def test_parts_of_a_study_are_put_together_without_text_or_weights(
    several: Study, training: FakeTraining, tmp_path: Path
) -> None:
    whole, one, other, both = (tmp_path / name for name in ("whole", "one", "other", "both"))
    (expected,) = run_study(several, whole, progress=False)
    for folder, variant in ((one, "a"), (other, "b")):
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("checkpoints", "index.html"))
        shutil.rmtree(folder / variant)
    (tmp_path / "text.txt").unlink()
    (tmp_path / "small.yaml").unlink()
    (found,) = report_study([one, other], both)
    assert found.replace(date=expected.date) == expected
    assert (both / "index.html").is_file()
    (half,) = report_study([one], tmp_path / "half")
    assert half.unfinished == ("a",)


def test_a_report_of_some_runs_says_what_is_left(several: Study, training: FakeTraining, tmp_path: Path) -> None:
    whole = several.replace(learning_rates=(1e-3, 2e-3))
    training.fails["rate-0.002-seed-1"] = TrainingError("no memory")
    with pytest.raises(TrainingError):
        run_study(whole, tmp_path, progress=False)
    (found,) = report_study([tmp_path], tmp_path)
    (variant,) = found.variants
    assert variant.learning_rates == (1e-3,)  # the other rate has one seed only
    assert found.waiting == {"a": 1, "b": 4}
    assert "Not finished yet: a (1 run left), b." in (tmp_path / "index.html").read_text()


def test_another_study_is_not_put_together(several: Study, training: FakeTraining, tmp_path: Path) -> None:
    run_study(several, tmp_path / "one", progress=False)
    run_study(several.replace(seeds=1), tmp_path / "other", progress=False)
    with pytest.raises(CheckpointError, match=r"other: holds another study than "):
        report_study([tmp_path / "one", tmp_path / "other"], tmp_path / "both")
    with pytest.raises(CheckpointError, match=r"nothing: holds no study; expected a folder that "):
        report_study([tmp_path / "nothing"], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_what_a_run_measured_is_read_and_what_it_did_not_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("{}")
    assert _measures(path) == {
        "positions": (),
        "lengths": (),
        "accuracy": (),
        "state_bytes": None,
        "peak_memory_bytes": None,
    }
    accuracy = {"length": 64, "pairs": 4, "distance": None, "depth": None, "accuracy": 0.5, "answers": 8}
    positions = {"start": 0, "end": 1, "loss": 5.5, "tokens": 12}
    path.write_text(json.dumps({"accuracy": [accuracy], "positions": [positions], "state_bytes": 12}))
    found = _measures(path)
    assert (found["accuracy"][0].pairs, found["positions"][0].loss, found["state_bytes"]) == (4, 5.5, 12)
    unreached = {"start": 64, "end": 128, "loss": None, "tokens": 0}
    path.write_text(json.dumps({"positions": [positions, unreached]}))
    assert [each.end for each in _measures(path)["positions"]] == [1]
    path.write_text(json.dumps({"accuracy": [{"length": "long"}]}))
    with pytest.raises(CheckpointError, match=r"result.json: not the result of a run: "):
        _measures(path)
