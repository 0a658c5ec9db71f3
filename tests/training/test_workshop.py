"""Runs that share a compiled model: each is what it is alone, and only the first one compiles."""

from pathlib import Path

import pytest
import torch

from zoo.builder import shrink
from zoo.recipe import Recipe, load_recipe
from zoo.training import read_metrics, train
from zoo.training.distributed import Processes
from zoo.training.workshop import Workshop

CPU = Processes(torch.device("cpu"))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number} of {number**3}\n" for number in range(2000)))
    small = shrink(load_recipe("tiny", ["model.layers=1"]))
    training = small.training.replace(steps=3, evaluate_every=3, checkpoint_every=3, log_every=1, warmup_steps=1)
    return small.replace(data=small.data.replace(source=str(text)), training=training)


def changed(recipe: Recipe, **training: object) -> Recipe:
    return recipe.replace(training=recipe.training.replace(**training))


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]


def test_another_seed_rate_and_length_compile_nothing_and_change_nothing(recipe: Recipe, tmp_path: Path) -> None:
    other, workshop = changed(recipe, seed=1, learning_rate=0.003, steps=4), Workshop()
    first = train(recipe, tmp_path / "first", workshop=workshop)
    second = train(other, tmp_path / "second", workshop=workshop)
    alone = train(other, tmp_path / "alone")
    assert losses(tmp_path / "second") == losses(tmp_path / "alone") != losses(tmp_path / "first")
    assert alone.compile_seconds > 0
    assert second.compile_seconds < 0.1 * first.compile_seconds
    assert second.graph_breaks == second.recompiles == 0


def test_a_kept_model_starts_anew(recipe: Recipe) -> None:
    workshop = Workshop()
    first = workshop.objective(recipe, CPU)
    for parameter in first.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.data.add_(1)
    torch.manual_seed(0)
    expected = Workshop().objective(recipe, CPU).model.state_dict()
    torch.manual_seed(0)
    again = workshop.objective(changed(recipe, seed=5), CPU)
    assert again is first
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())
    assert all(parameter.grad is None for parameter in again.parameters())


@pytest.mark.parametrize(
    "changes", [{"batch_size": 3}, {"checkpointing": "full"}, {"compile": False}, {"accumulate": 2}]
)
def test_what_differs_otherwise_gets_a_model_of_its_own(recipe: Recipe, changes: dict[str, object]) -> None:
    workshop = Workshop()
    assert workshop.objective(recipe, CPU) is not workshop.objective(changed(recipe, **changes), CPU)
