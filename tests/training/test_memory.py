"""Running out of memory is one line that says what to change."""

import importlib
import re

import pytest
import torch

from zoo.builder import shrink
from zoo.errors import TrainingError
from zoo.recipe import load_recipe
from zoo.training import TrainingConfig, train
from zoo.training.engine import Engine
from zoo.training.memory import advice, is_out_of_memory


def test_training_says_what_to_change(tmp_path, tiny_recipe, train_tiny, monkeypatch):
    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(TrainingError) as caught:
        train_tiny(tiny_recipe(), tmp_path / "run")
    assert str(caught.value) == (
        "out of memory at training.context_length 8, training.batch_size 4, training.checkpointing none: "
        "training.checkpointing=selective keeps a fraction; a smaller training.batch_size (training.accumulate makes "
        "up for it) or a shorter training.context_length"
    )


OUTSIDE_OF_STEPS = {
    "zoo.training.train.load_corpus": "while data.source was read: a part of it, or token shards",
    "zoo.training.workshop.build": "while the model was built: a smaller model.width or model.layers",
    "zoo.training.train.Trainer": "at training.context_length 256, training.batch_size ",
    "zoo.training.loop.Trainer._resume": "at training.context_length 256, training.batch_size ",
    "zoo.training.loop.Trainer._finish": "at training.context_length 256, training.batch_size ",
}


@pytest.mark.parametrize("place", OUTSIDE_OF_STEPS)
@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")], ids=repr)
def test_so_does_whatever_comes_before_and_after_the_steps(place, error, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise error

    (tmp_path / "text.txt").write_text("some words\n" * 2000)
    data, training = f"data.source={tmp_path}/text.txt", ["training.steps=1", "training.warmup_steps=0"]
    recipe = shrink(load_recipe("tiny")).override([data, *training, "training.compile=false"])
    recipe = recipe.override(["training.context_length=256"])
    module, name, *method = re.fullmatch(r"(zoo\.training\.\w+)\.(\w+)(?:\.(\w+))?", place).groups()
    owner = importlib.import_module(module)  # `train` is a function of the package too
    monkeypatch.setattr(*((getattr(owner, name), *method) if method[0] else (owner, name)), fail)
    with pytest.raises(TrainingError) as caught:
        train(recipe, tmp_path / "run", device="cpu")
    assert str(caught.value).startswith(f"out of memory {OUTSIDE_OF_STEPS[place]}")


def test_advice_is_what_can_still_be_done():
    least = advice(TrainingConfig(batch_size=1, context_length=524288, checkpointing="full"))
    assert least.endswith("training.context_length 524,288, training.batch_size 1, training.checkpointing full: "
                          "a shorter training.context_length")  # fmt: skip
    assert "=full keeps least" in advice(TrainingConfig(checkpointing="selective"))


def test_lack_of_memory_is_told_from_other_errors():
    compiling = RuntimeError("compiling failed")
    compiling.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert is_out_of_memory(compiling)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("a size does not fit"))


def test_other_errors_pass(tmp_path, tiny_recipe, train_tiny, monkeypatch):
    def step(*_):
        raise ValueError("something else")

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(ValueError, match="something else"):
        train_tiny(tiny_recipe(), tmp_path / "run")
