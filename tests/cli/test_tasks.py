"""`zoo train`, `show` and `generate` of recipes with a task."""

from collections.abc import Callable
from pathlib import Path

from click.testing import Result

OVERRIDES = ("task=mqar", "task.pairs=2", "task.vocab_size=32", "task.train_lengths=[16]", "task.test_lengths=[16,24]")


def test_train_tells_the_accuracy(
    zoo: Callable[..., Result], refused: Callable[..., str], recipe_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    result = zoo("train", recipe_file, *OVERRIDES, "--folder", folder)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    for line, end in zip(lines, ("64 answers right at length 16", "42 answers right at length 24"), strict=False):
        assert line.startswith("little: ")
        assert f"% of {end} with 2 pairs" in line
    assert lines[2].startswith(f"{folder}: metrics, checkpoints and result.json")
    assert "right" in result.stderr.splitlines()[-1]  # the progress, of the last evaluation
    assert zoo("train", recipe_file, *OVERRIDES, "--folder", folder).stdout == result.stdout
    said = refused("generate", folder, "--prompt", "a")
    assert said == "run_folder: expected a run on text, was one on task mqar"


def test_depths_are_told(zoo: Callable[..., Result], recipe_file: Path, tmp_path: Path) -> None:
    task = ("task=passkey", "task.digits=3", "task.depths=[0.5]", "task.train_lengths=[16]", "task.test_lengths=[16]")
    result = zoo("train", recipe_file, *task, "--folder", tmp_path / "run", "training.steps=1")
    assert "answers right at length 16 at depth 0.5" in result.stdout, result.output


def test_show_names_the_task(zoo: Callable[..., Result], recipe_file: Path) -> None:
    shown = zoo("show", recipe_file, *OVERRIDES).stdout
    assert "mqar, lengths 16" in shown
    assert "32 tokens" in shown
    assert "kind: mqar" in zoo("show", recipe_file, *OVERRIDES, "--yaml").stdout


def test_a_task_that_does_not_fit_is_one_line(refused: Callable[..., str], recipe_file: Path, tmp_path: Path) -> None:
    train = ("train", recipe_file, "--folder", tmp_path / "run")
    assert "task.kind: must be one of 'mqar'" in refused(*train, "task=mqr")
    assert "training.context_length: must be at least the longest" in refused(*train, "task=mqar")
    assert not (tmp_path / "run").exists()
