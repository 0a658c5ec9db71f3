"""Runs that go on with another number of processes, laid out in another way, and what may go wrong on the way."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zoo.recipe import load_recipe
from zoo.training import load_checkpoint_model, train
from zoo.training.run.folder import trained

from .layouts import LONGER
from .test_distributed import launch, losses, recipe_file  # noqa: F401 (a fixture)
from .test_loop import assert_same_run


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """As in `layouts`."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def go_on(processes: int, recipe: Path, folder: Path, *runs: dict[str, list[str]]) -> None:
    script = ["-m", "tests.training.layouts", recipe, folder, *map(json.dumps, runs)]
    finished = launch(processes, *script)
    assert finished.returncode == 0, finished.stderr[:6000]


def test_two_processes_go_on_in_any_layout(tmp_path: Path, recipe_file: Path) -> None:  # noqa: F811
    runs = {"straight": ["12"], "stopped": ["5", "6", "9", "12"], "mixed": ["4", "7:context=2", "10:data_replicate=2"]}
    runs |= {"tensor": ["4:tensor=2", "7", "10:tensor=2"], "tensor to the end": ["8:tensor=2", "12:tensor=2"]}
    go_on(2, recipe_file, tmp_path, runs)
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")
    _, checkpoint = trained(tmp_path / "mixed")
    assert (checkpoint.step, checkpoint.is_in_parts) == (10, True)
    load_checkpoint_model(tmp_path / "mixed")
    for name in ("mixed", "tensor", "tensor to the end", "alone"):
        train(load_recipe(str(recipe_file)), tmp_path / name, device="cpu")
    _, checkpoint = trained(tmp_path / "mixed")
    assert (checkpoint.step, checkpoint.is_in_parts) == (12, False)
    for name in ("mixed", "straight", "tensor", "tensor to the end"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "alone"), rel=1e-6)


def test_what_fails_on_one_process_is_told_by_all(tmp_path: Path, recipe_file: Path) -> None:  # noqa: F811
    go_on(2, recipe_file, tmp_path)
    train(load_recipe(str(recipe_file), LONGER), tmp_path / "alone", device="cpu")
    for name in ("full", "not finite", "unseen"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "alone"), rel=1e-6), name


@pytest.mark.slow
def test_two_four_one_and_two_processes_are_one_run(tmp_path: Path, recipe_file: Path) -> None:  # noqa: F811
    alone = load_recipe(str(recipe_file))
    train(alone, tmp_path / "alone", device="cpu")
    go_on(2, recipe_file, tmp_path, {"run": ["2:context=2"]})
    layouts = ["4:context=2,data_replicate=2", "6:context=2", "7:context=4", "8:tensor=2"]
    layouts.append("9:tensor=2,data_replicate=2")
    go_on(4, recipe_file, tmp_path, {"run": layouts, "both": ["6:context=2,tensor=2"]})
    go_on(1, recipe_file, tmp_path, {"run": ["10"], "both": ["9"]})
    go_on(2, recipe_file, tmp_path, {"run": ["11", "12:context=2"], "both": ["12:tensor=2"]})
    for name in ("run", "both"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "alone"), rel=1e-6), name
    load_checkpoint_model(tmp_path / "run")
