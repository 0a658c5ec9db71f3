"""`zoo train` and `zoo ablate` under signals: exit codes, one line that says how to go on, and what is left behind."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console

from zoo.study import StudySummary
from zoo.study.progress import Watched
from zoo.training import LineProgress, read_metrics, run_status

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 138}


class Sending(LineProgress):
    """Sends a signal to this process at the end of step 1."""

    number = signal.SIGTERM

    def __init__(self, description: str, console: Console | None = None) -> None:
        super().__init__(description, console or Console(stderr=True))

    def advance(self, step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), self.number)


def losses(path: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(path / "metrics.jsonl")]


@pytest.mark.parametrize(("number", "exit_code"), SIGNALS.items(), ids=lambda value: getattr(value, "name", None))
def test_train_says_how_to_go_on(
    number: signal.Signals, exit_code: int, zoo: Callable[..., Result], recipe_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder, whole = tmp_path / "run", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(Sending, "number", number)
        patch.setattr("zoo.training.make_progress", Sending)
        stopped = zoo("train", recipe_file, "--folder", folder)
    assert stopped.exit_code == exit_code
    line = f"Error: stopped by {number.name} after step 1, which is saved; the same command goes on from there"
    assert stopped.stderr.splitlines()[-1] == line
    assert zoo("train", recipe_file, "--folder", folder).exit_code == 0
    assert zoo("train", recipe_file, "--folder", whole).exit_code == 0
    assert losses(folder) == losses(whole)


def test_ablate_leaves_its_page(
    zoo: Callable[..., Result], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    command = ("ablate", recipe_file, "--mixers", "softmax,linear", "--folder", folder, "--processes", "1")

    class SendingWatched(Watched):
        def advance(self, step: int) -> None:
            if step == 1 and self._name == "linear":
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("zoo.study.work.Watched", SendingWatched)
        stopped = zoo(*command)
    assert stopped.exit_code == 143
    assert stopped.stderr.splitlines()[-1].startswith("Error: stopped by SIGTERM after step 1, which is saved; the")
    assert StudySummary.from_json((folder / "summary.json").read_text()).unfinished == ("linear",)
    assert "Not finished yet: linear" in (folder / "index.html").read_text()
    assert run_status(folder / "linear") == "unfinished"
    assert zoo(*command).exit_code == 0
    assert run_status(folder / "linear") == "finished"
