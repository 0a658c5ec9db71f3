"""Several processes of one study: all is trained once, and what stops one stops all of them."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.errors import Interruption, TrainingError
from zoo.recipe.study import Study
from zoo.study import run_study
from zoo.study.processes import default_processes
from zoo.training import run_status


@pytest.fixture
def quick(study: Study) -> Study:
    overrides = ["training.compile=false", "model.layers=1"]
    return study.overridden(overrides).replace(variants={"a": ("mixer=linear",), "b": ("mixer=softmax",)}, seeds=2)


@pytest.mark.usefixtures("undrawn")
def test_two_processes_come_to_what_one_does(quick: Study, tmp_path: Path) -> None:
    (one,) = run_study(quick, tmp_path / "one", progress=False)
    (two,) = run_study(quick, tmp_path / "two", progress=False, processes=2)
    assert two.unfinished == ()
    for alone, together in zip(one.variants, two.variants, strict=True):
        assert list(together.losses.values()) == pytest.approx(list(alone.losses.values()), rel=1e-5)
        assert {run.machine.threads for run in together.runs} == {1}


@pytest.mark.usefixtures("undrawn")
def test_what_stops_a_process_is_told(quick: Study, tmp_path: Path) -> None:
    (tmp_path / "a" / "rate-0.004-seed-0").mkdir(parents=True)
    (tmp_path / "a" / "rate-0.004-seed-0" / "metrics.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"^variant 'a/rate-0.004-seed-0': .*metrics.jsonl: cannot be "):
        run_study(quick, tmp_path, progress=False, processes=2)


@pytest.mark.usefixtures("undrawn")
def test_after_some_seconds_it_stops_and_goes_on_later(quick: Study, tmp_path: Path) -> None:
    longer = quick.overridden(["training.steps=2000", "training.evaluate_every=2000"]).replace(
        variants={"a": ()}, seeds=1
    )
    with pytest.raises(Interruption, match=r"^stopped by SIGUSR1 after step \d+, which is saved$"):
        run_study(longer, tmp_path, progress=False, seconds=2.0)
    assert run_status(tmp_path / "a") == "unfinished"


def test_a_process_ends_when_the_one_that_started_it_is_gone(study: Study, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(study.overridden(["training.steps=1000000"]).to_yaml())
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    member = [
        sys.executable,
        "-m",
        "zoo.study.member",
        str(tmp_path),
        "0",
        "1",
        "0",
        "cpu",
        gone.stdout.decode().strip(),
    ]
    ended = subprocess.run(member, capture_output=True, timeout=300)
    assert ended.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)


@pytest.mark.parametrize("device", ["cpu", None])
def test_there_is_a_process_for_each_core(device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert default_processes(device) == 3
    assert default_processes("cuda:1") == 1
