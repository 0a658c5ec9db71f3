"""`zoo study`: plan, run, status and report."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from zoo.cli import main
from zoo.training import read_metrics


@pytest.fixture
def study_file(recipe_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\nrecipe: {recipe_file}\noverrides: {{model.layers: 1}}\nseeds: 2\n"
        "variants:\n  a: {mixer: linear}\n  b: {mixer: softmax}\n"
    )
    return path


def test_plan_run_status_report(
    zoo: Callable[..., Result], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = zoo("study", "plan", study_file, "--tokens-per-second", "1000")
    assert planned.exit_code == 0, planned.output
    assert "4 runs, training time" in planned.stdout
    assert not (tmp_path / "runs").exists()

    ran = zoo("study", "run", study_file, "--processes", "1")
    assert ran.exit_code == 0, ran.output
    assert "runs/mine/index.html" in ran.stdout

    status = zoo("study", "status", "mine")
    assert status.stdout.splitlines()[-1] == "4 of 4 runs done"
    assert zoo("study", "status", tmp_path / "runs" / "mine").stdout == status.stdout

    page = tmp_path / "runs" / "mine" / "index.html"
    page.unlink()
    reported = zoo("study", "report", "mine", "--output", "elsewhere")
    assert reported.exit_code == 0, reported.output
    assert (tmp_path / "elsewhere" / "index.html").is_file()
    assert not page.exists()


def test_a_study_stops_in_time_and_goes_on(zoo: Callable[..., Result], study_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    command = ("study", "run", study_file, "--folder", folder, "--processes", "1", "training.steps=3000")
    stopped = zoo(*command, "--seconds", "3")
    assert stopped.exit_code == 0, stopped.output
    line = f"{folder}: the 3 seconds are over, and every step is saved; the same command goes on"
    assert stopped.stdout.splitlines()[-1] == line
    assert zoo("study", "status", folder).stdout.splitlines()[-2].startswith("0 of 4 runs done")
    steps = [record["step"] for record in read_metrics(folder / "a" / "rate-0.004-seed-0" / "metrics.jsonl")]
    assert steps == sorted(steps)


def test_some_runs_are_trained_and_carried_away(
    zoo: Callable[..., Result], refused: Callable[..., str], study_file: Path, tmp_path: Path
) -> None:
    command = ("study", "run", study_file, "--folder", tmp_path / "study", "--processes", "1")
    ran = zoo(*command, "--only", "*-seed-0,b/*")
    assert ran.exit_code == 0, ran.output
    exported = zoo("study", "export", tmp_path / "study", "--output", tmp_path / "kept")
    assert exported.exit_code == 0, exported.output
    first, second = exported.stdout.splitlines()
    assert first.startswith(f"{tmp_path / 'kept'}: 3 of 4 runs, ")
    assert second == f"zoo study report {tmp_path / 'kept'}"
    reported = zoo(*second.split()[1:])
    assert reported.exit_code == 0, reported.output
    assert "a (1 run left) is not finished" in reported.stdout
    assert (tmp_path / "kept" / "index.html").is_file()
    message = refused(*command, "--only", "seed-0")
    assert message.startswith("only: no run is like 'seed-0'; there are a/rate-0.004-seed-0, ")


def test_every_fault_has_its_line(zoo: Callable[..., Result], study_file: Path, tmp_path: Path) -> None:
    study_file.write_text(study_file.read_text() + "  c: {mixer: pwoer, training.setps: 3}\nbudget: {tokens: 3}\n")
    result = zoo("study", "plan", study_file)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert lines[0] == "Error: 4 faults:"
    assert [line.partition(": ")[0] for line in lines[1:]] == [
        "  variant 'a'", "  variant 'b'", "  variant 'c'", "  variant 'c'",
    ]  # fmt: skip
    study_file.write_text("nme: mine\nrecipe: tiny\nseeds: 0\nvariants: {a: {mixer: linear}}\n")
    lines = zoo("study", "plan", study_file).stderr.splitlines()
    assert lines[1].endswith("mine.yaml: nme: unknown key (did you mean 'name'?)")
    assert any(line.endswith("mine.yaml: seeds: must be greater than or equal to 1, got 0") for line in lines)


def test_what_is_no_study_is_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    for command in ("status", "report"):
        assert "nowhere: holds no study; expected a folder that zoo study run" in refused("study", command, "nowhere")
    assert "(did you mean 'four-mixers'?)" in refused("study", "plan", "for-mixers")


@pytest.mark.parametrize("command", ["plan", "run", "report", "export"])
def test_examples_in_help_are_valid_commands(command: str) -> None:
    group = main.commands.get("study") or main.get_command(None, "study")
    inner = group.get_command(None, command)
    examples = [
        line.split()[3:] for line in inner.help.splitlines() if line.strip().startswith(f"zoo study {command} ")
    ]
    assert examples
    for example in examples:
        inner.make_context(command, example)
