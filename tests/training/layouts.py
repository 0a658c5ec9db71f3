"""Run by `torchrun` for `test_layouts.py`: runs that go on in one layout after the other, and what may go wrong.

Arguments: a recipe, a folder for the runs, and as JSON the layouts of each; without them, troubles are made.
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from zoo.errors import Interruption, TrainingError
from zoo.reading import hash_file as hash_of_file
from zoo.recipe import Recipe, load_recipe
from zoo.training import train
from zoo.training.engine import Engine
from zoo.training.run import parts

LONGER = ["training.steps=16", "training.evaluate_every=7"]  # of troubles


@contextmanager
def before_step(number: int, rank: int, action: Any) -> Iterator[None]:
    """Do something on one process at the beginning of a step."""
    step = Engine.step

    def acting(self: Engine, now: int, *arguments: Any) -> Tensor:
        if now == number and int(os.environ.get("RANK", "0")) == rank:
            action(self)
        return step(self, now, *arguments)

    with mock.patch.object(Engine, "step", acting):
        yield


def stop(engine: Engine) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def go_on(recipe: Recipe, folder: Path, until: int) -> None:
    """Train until a signal that the last process gets in the middle of a step."""
    last = int(os.environ.get("WORLD_SIZE", "1")) - 1
    with before_step(until, last, stop), pytest.raises(Interruption, match=f"after step {until}, which is saved"):
        train(recipe, folder, device="cpu")


def stretches(recipe: Recipe, folder: Path, runs: dict[str, list[str]]) -> None:
    """Train each run up to steps in layouts, each given as `step:key=value,key=value`."""
    for name, layouts in runs.items():
        for layout in layouts:
            until, _, overrides = layout.partition(":")
            laid_out = recipe.override([f"training.parallel.{key}" for key in overrides.split(",") if key])
            go_on(laid_out, folder / name, int(until))


def refused(recipe: Recipe, folder: Path) -> str:
    with pytest.raises(TrainingError) as caught:
        train(recipe, folder, device="cpu")
    return str(caught.value)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def troubles(recipe: Recipe, folder: Path) -> None:
    """What fails on one process is told by all, and what was saved before stays."""
    two = ["step-00000004", "step-00000008"]

    def hash_file(path: Path) -> str:
        if os.environ["RANK"] == "1" and ".step-00000012." in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return hash_of_file(path)

    def break_weight(engine: Engine) -> None:
        weight = next(iter(engine.parts()["model"].values()))
        weight.to_local()[:] = torch.nan  # type: ignore[attr-defined]

    own = folder / "full"
    with mock.patch.object(parts, "hash_file", hash_file):
        line = refused(recipe, own)
    assert line == f"{own}/checkpoints/step-00000012: cannot be written: No space left on device", line
    assert checkpoints(own) == two
    train(recipe, own, device="cpu")

    own = folder / "not finite"
    step = Engine.step

    def breaking(self: Engine, number: int, *arguments: Any) -> Tensor:
        values = step(self, number, *arguments)
        if number == 12 and os.environ["RANK"] == "1":
            break_weight(self)
        return values

    with mock.patch.object(Engine, "step", breaking):
        line = refused(recipe, own)
    assert "token_embedding.weight is not finite after it" in line, line
    assert line.endswith(f"the last checkpoint is {own}/checkpoints/step-00000008"), line
    assert checkpoints(own) == two
    train(recipe, own, device="cpu")

    own = folder / "unseen"
    is_dir = Path.is_dir
    unseen = mock.patch.object(Path, "is_dir", lambda path: os.environ["RANK"] == "0" and is_dir(path))
    with unseen:
        go_on(recipe, own, 6)
    assert (own / "checkpoints" / "step-00000006" / "model.safetensors").exists()  # by the first process
    go_on(recipe, own, 10)
    assert not (own / "checkpoints" / "step-00000010" / "model.safetensors").exists()
    with unseen:
        train(recipe, own, device="cpu")


def main(recipe: str, folder: str, runs: str | None = None) -> None:
    torch.set_default_dtype(torch.float64)  # in float32 the order of sums soon shows
    if runs is None:
        troubles(load_recipe(recipe, LONGER), Path(folder))
    else:
        stretches(load_recipe(recipe), Path(folder), json.loads(runs))


if __name__ == "__main__":
    main(*sys.argv[1:])
