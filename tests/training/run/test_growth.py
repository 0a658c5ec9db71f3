"""Runs that grow: a longer one is what it had been from the beginning, and what would change results is refused."""

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from zoo.config import load_yaml
from zoo.errors import CheckpointError
from zoo.training import load_result, read_metrics
from zoo.training.run import RunFolder

from ..stopping import StopAt


def weights(folder, step):
    place = folder / "checkpoints" / f"step-{step:08d}"
    return {
        f"{name}/{key}": tensor
        for name in ("model", "optimizer", "generators")
        for key, tensor in load_file(place / f"{name}.safetensors").items()
    }


def assert_same_weights(one, other, step):
    left, right = weights(one, step), weights(other, step)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 8), min_size=2, max_size=4), stop=st.integers(1, 30), data=st.data())
def test_a_run_made_longer_is_one_that_was_that_long(lengths, stop, data, tmp_path_factory, tiny_recipe, train_tiny):
    folder = tmp_path_factory.mktemp("grown")
    common = {"schedule": "constant", "warmup_steps": 1}
    steps = 0
    for more in lengths:
        steps += more
        before = RunFolder(folder / "run").status(tiny_recipe(steps=steps, **common))
        assert before == ("missing" if steps == more else "unfinished")
        every = data.draw(st.integers(1, 5), label="every")
        recipe = tiny_recipe(steps=steps, log_every=every, checkpoint_every=every, **common)
        try:
            train_tiny(recipe, folder / "run", progress=StopAt(stop))
        except KeyboardInterrupt:
            train_tiny(recipe, folder / "run")
        assert load_result(folder / "run").steps == steps
    train_tiny(tiny_recipe(steps=steps, **common), folder / "straight")
    assert_same_weights(folder / "run", folder / "straight", steps)
    assert load_yaml(folder / "run" / "recipe.yaml")["training"]["steps"] == steps
    found = [record["step"] for record in read_metrics(folder / "run" / "metrics.jsonl")]
    assert found == sorted(found)


def test_in_its_warm_up_a_run_may_grow_whatever_comes_after(tmp_path, tiny_recipe, train_tiny):
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny_recipe(warmup_steps=8), tmp_path / "run", progress=StopAt(5))
    train_tiny(tiny_recipe(warmup_steps=8, steps=16), tmp_path / "run")
    train_tiny(tiny_recipe(warmup_steps=8, steps=16), tmp_path / "straight")
    assert_same_weights(tmp_path / "run", tmp_path / "straight", 16)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("stop", [10, None])
def test_a_schedule_that_ends_at_the_last_step_keeps_its_length(tmp_path, tiny_recipe, train_tiny, schedule, stop):
    with contextlib.suppress(KeyboardInterrupt):
        train_tiny(tiny_recipe(schedule=schedule), tmp_path, progress=StopAt(stop))
    made = 12 if stop is None else 8
    line = (
        rf"holds a run with training\.steps=12, not 24, with other learning rates for the {made} that are made "
        rf"\(training\.schedule={schedule}\); choose another folder"
    )
    with pytest.raises(CheckpointError, match=line):
        train_tiny(tiny_recipe(schedule=schedule, steps=24), tmp_path)
    assert load_yaml(tmp_path / "recipe.yaml")["training"]["steps"] == 12
    assert (tmp_path / "result.json").exists() == (stop is None)


def test_steps_that_are_made_stay_made(tmp_path, tiny_recipe, train_tiny):
    train_tiny(tiny_recipe(schedule="constant"), tmp_path)
    with pytest.raises(CheckpointError, match=r"training\.steps=12, not 11, and 12 of them are made; choose another"):
        train_tiny(tiny_recipe(schedule="constant", steps=11), tmp_path)


FREE = [
    {"log_every": 7},
    {"checkpoint_every": 1},
    {"checkpoint_every": 100},
    {"tensorboard": True},
    {"spike": "stop"},
]


@pytest.mark.parametrize("changes", FREE, ids=str)
def test_bookkeeping_may_change(tmp_path, tiny_recipe, train_tiny, changes):
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny_recipe(), tmp_path / "run", progress=StopAt(10))
    train_tiny(tiny_recipe(**changes), tmp_path / "run")
    train_tiny(tiny_recipe(), tmp_path / "straight")
    assert_same_weights(tmp_path / "run", tmp_path / "straight", 12)
    assert (
        load_yaml(tmp_path / "run" / "recipe.yaml")["training"] | changes
        == tiny_recipe(**changes).model_dump()["training"]
    )
    assert RunFolder(tmp_path / "run").status(tiny_recipe()) == "finished"


CHANGING = [
    {"seed": 2},
    {"batch_size": 8},
    {"evaluate_every": 4},
    {"spike": "skip"},
    {"clip_norm": None},
    {"beta1": 0.8},
]


@pytest.mark.parametrize("changes", CHANGING, ids=str)
def test_what_would_change_results_is_refused_by_name(tmp_path, tiny_recipe, train_tiny, changes):
    train_tiny(tiny_recipe(), tmp_path)
    with pytest.raises(CheckpointError, match=f"holds a run with training.{next(iter(changes))}="):
        train_tiny(tiny_recipe(**changes), tmp_path)
