"""`zoo train`, `generate` and `ablate`, on a recipe that trains in a second."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console

from zoo.errors import InputError
from zoo.recipe import Recipe, load_recipe
from zoo.training import LineProgress, read_metrics, train


def test_train_then_generate(zoo: Callable[..., Result], recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = zoo("train", recipe_file, "mixer=power", "--folder", folder)
    assert result.exit_code == 0, result.output
    assert "bits per byte" in result.stdout
    assert str(folder) in result.stdout
    assert Recipe.from_yaml((folder / "recipe.yaml").read_text()).mixer.name == "power"
    assert [record["step"] for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "train"] == [
        1,
        2,
        3,
        4,
    ]

    again = zoo("train", recipe_file, "mixer=power", "--folder", folder)
    assert again.stdout == result.stdout

    options = ["--prompt", "Line ", "--max-new-tokens", "12", "--temperature", "1"]
    texts = [zoo("generate", folder, *options, "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert texts[0].startswith("Line ")
    assert texts[0] == texts[1] != texts[2]
    assert zoo("generate", folder, *options, "--seed", "1", "--prefill-chunk", "2").stdout == texts[0]
    assert zoo("generate", folder, "--prompt", "Line ", "--max-new-tokens", "0").stdout == "Line \n"
    alone = zoo("generate", folder, "--prompt", "Line ", "--max-new-tokens", "9", "--temperature", "0")
    drafted = zoo("generate", folder, "--prompt", "Line ", "--max-new-tokens", "9", "--draft", folder)
    assert drafted.stdout == alone.stdout
    assert "drafted tokens were accepted" in drafted.stderr
    refused = zoo("generate", folder, "--temperature", "1", "--draft", folder)
    assert refused.stderr.startswith("Error: temperature: expected 0 with a draft")
    for device in ("meta", "abacus"):
        refused = zoo("generate", folder, "--device", device)
        assert refused.exit_code == 2
        assert refused.stderr.startswith("Error: device: must be one that ")


def test_runs_go_where_they_are_named_by_default(
    zoo: Callable[..., Result], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert zoo("train", recipe_file, "training.steps=1").exit_code == 0
    assert (tmp_path / "runs" / "little" / "recipe.yaml").is_file()


def test_ablate_compares_mixers(zoo: Callable[..., Result], recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    result = zoo(
        *("ablate", recipe_file, "--mixers", "softmax, linear", "--folder", folder, "training.steps=2"),
        *("--processes", "1"),
    )
    assert result.exit_code == 0, result.output
    assert "softmax" in result.stdout
    assert str(folder / "index.html") in result.stdout.replace("\n", "")
    assert (folder / "index.html").is_file()


def test_what_cannot_be_trained_is_one_line(refused: Callable[..., str], recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train = ("train", recipe_file, "--folder", folder)
    assert "unknown key (did you mean 'steps'?)" in refused(*train, "training.setps=3")
    assert not folder.exists()
    assert "model.vocab_size: must be at least the corpus's 257, got 100" in refused(*train, "model.vocab_size=100")
    assert "nothing.txt" in refused(*train, "data.source=nothing.txt", "--folder", tmp_path / "other")
    assert "nowhere" in refused("generate", tmp_path / "nowhere")
    assert "unknown mixer 'powr' (did you mean 'power'?)" in refused("ablate", recipe_file, "--mixers", "powr")
    assert "(did you mean 'four-mixers'?)" in refused("ablate", "for-mixers")


@pytest.mark.parametrize(
    ("rates", "message"),
    [("1e-3,-0.1", "expected numbers over 0, was -0.1"), ("1e-3;2e-3", "expected numbers with commas, such as 1e-3")],
)
def test_rates_that_are_none_are_refused(zoo: Callable[..., Result], rates: str, message: str) -> None:
    result = zoo("ablate", "tiny", "--learning-rates", rates)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    "command", [("train", "tiny", "--folder", ""), ("ablate", "tiny", "--folder", ""), ("generate", "")]
)
def test_an_empty_folder_is_not_the_current_one(
    zoo: Callable[..., Result], command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = zoo(*command)
    assert result.exit_code == 2
    assert result.stderr.endswith("expected the name of a folder, was ''; the current one is .\n")
    with pytest.raises(InputError, match="folder: expected the path of a folder, was ''"):
        train(load_recipe("tiny"), "")
    assert not list(tmp_path.iterdir())


def test_generate_says_what_is_out_of_range(zoo: Callable[..., Result], tmp_path: Path) -> None:
    result = zoo("generate", tmp_path, "--temperature", "-1")
    assert result.exit_code == 2
    assert "'--temperature'" in result.stderr


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from the last checkpoint, if there is one"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "No space left on device: a/b"),
        (OSError("broken"), 1, "broken"),
    ],
)
def test_interruptions_and_system_errors_are_one_line(
    zoo: Callable[..., Result],
    recipe_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    exit_code: int,
    message: str,
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("zoo.training.train", fail)
    result = zoo("train", recipe_file)
    assert result.exit_code == exit_code
    assert result.stderr == f"Error: {message}\n"


def test_ctrl_c_leaves_a_run_that_goes_on(
    zoo: Callable[..., Result], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(LineProgress):
        def advance(self, step: int) -> None:
            if step == 3:
                raise KeyboardInterrupt

    folder, whole = tmp_path / "run", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr("zoo.training.make_progress", lambda name: Interrupting(name, Console(stderr=True)))
        assert zoo("train", recipe_file, "--folder", folder).exit_code == 130
    assert zoo("train", recipe_file, "--folder", folder).exit_code == 0
    assert zoo("train", recipe_file, "--folder", whole).exit_code == 0

    def losses(path: Path) -> list[float]:
        return [record["loss"] for record in read_metrics(path / "metrics.jsonl")]

    assert losses(folder) == losses(whole)
