"""`zoo cache save` and `zoo cache load`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has compiled nothing."""
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)


def test_what_compiles_nothing_saves_nothing(
    refused: Callable[..., str], recipe_file: Path, tmp_path: Path, fresh: None
) -> None:
    path = tmp_path / "some.cache"
    said = refused("cache", "save", path, recipe_file, "--device", "cpu")
    assert said == f"{path}: nothing was compiled, so that there is nothing to save"
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_compiled(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    said = refused("cache", "save", tmp_path / "nowhere" / "some.cache", "tiny")
    assert said.startswith("file: expected a file in a folder that exists, was ")


def test_one_of_several_processes_saves_nothing(
    refused: Callable[..., str], recipe_file: Path, tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = refused("cache", "save", tmp_path / "some.cache", recipe_file, "--device", "cpu")
    assert said == "WORLD_SIZE: expected one process, without torchrun, was 2"


def test_a_file_that_is_none_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    missing, other = tmp_path / "missing", tmp_path / "other"
    other.write_text("text")
    assert refused("cache", "load", missing, "--trusted") == f"{missing}: cannot be read: No such file or directory"
    assert refused("cache", "load", other, "--trusted") == f"{other}: expected a file that zoo cache save wrote"


def test_help_says_what_trust_means(zoo: Callable[..., Result]) -> None:
    said = " ".join(zoo("cache", "load", "--help").stdout.split())
    assert "FILE holds programs, and whatever is compiled next runs them: they can do what you can." in said
    assert "--trusted You would run any program of whoever wrote FILE." in said


@pytest.mark.slow
def test_a_run_compiles_nothing_where_its_cache_was_loaded(recipe_file: Path, tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(caches), "TORCHINDUCTOR_CPP_SIMDLEN": "1"}

    def zoo(*arguments: object) -> str:
        command = [sys.executable, "-m", "zoo", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def compiled() -> set[Path]:
        return {*caches.rglob("*.so"), *caches.glob("fxgraph/*/*/*")}

    path, run = tmp_path / "little.cache", tmp_path / "run"
    zoo("cache", "save", path, recipe_file, "training.compile=true", "--device", "cpu")
    assert not compiled()
    assert "were there already" in zoo("cache", "load", path, "--trusted")
    before = compiled()
    assert before
    zoo("train", recipe_file, "training.compile=true", "--device", "cpu", "--folder", run)
    assert compiled() == before
    assert json.loads((run / "result.json").read_text())["compile_seconds"] > 0
