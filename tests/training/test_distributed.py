"""Two processes train what one trains; their checkpoints are one process's and the other way round."""

import json
import subprocess
import sys

import pytest
import torch

from zoo.data import Batch
from zoo.errors import InputError
from zoo.recipe import load_recipe
from zoo.training import read_metrics
from zoo.training.distributed import Processes, join_processes

SCRIPT = """
import sys
from zoo.recipe import load_recipe
from zoo.training import SilentProgress, train

class StopAt(SilentProgress):
    def advance(self, step):
        if step == int(sys.argv[3]):
            raise SystemExit(7)

train(load_recipe(sys.argv[1]), sys.argv[2], device="cpu", progress=StopAt())
"""


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_processes("cpu") as processes:
        assert processes == Processes(torch.device("cpu"))
        processes.barrier()
        values = torch.arange(3.0)
        assert processes.mean(values) is values


@pytest.mark.parametrize(
    ("name", "line"),
    [("abacus", "there is here"), ("cuda:99", "there is here"), ("meta", "must be one that computes")],
)
def test_a_device_that_is_not_there_is_one_line(name, line):
    with pytest.raises(InputError, match=f"^device: .*{line}"), join_processes(name):
        pass


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_shares_of_a_batch_are_the_batch(count):
    batch = Batch(torch.arange(30).view(6, 5), torch.arange(30).view(6, 5) + 1, torch.zeros(6, 5, dtype=torch.bool))
    shares = [Processes(torch.device("cpu"), rank, count).share_of(batch) for rank in range(count)]
    for whole, parts in zip(batch, zip(*shares, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), whole)
    odd = Processes(torch.device("cpu"), 1, 4).share_of(batch)
    assert odd is batch


@pytest.fixture
def recipe_file(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{number} times {number} is {number**2}." for number in range(400)))
    recipe = load_recipe(
        "tiny",
        [
            "model.layers=2",
            "model.width=32",
            "model.heads=2",
            "model.feed_forward_width=64",
            "mixer=gated-power",
            f"data.source={text}",
            "training.context_length=32",
            "training.batch_size=4",
            "training.accumulate=2",
            "training.steps=12",
            "training.warmup_steps=3",
            "training.log_every=1",
            "training.evaluate_every=6",
            "training.evaluation_tokens=256",
            "training.checkpoint_every=4",
            "training.compile=false",
            "training.tensorboard=true",
        ],
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    return path


def run(recipe_file, folder, processes, stop_at=0):
    script = recipe_file.with_name("script.py")
    script.write_text(SCRIPT)
    launcher = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    )
    command = [sys.executable, *launcher, script, recipe_file, folder, str(stop_at)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (finished.returncode != 0) == bool(stop_at), finished.stderr[-2000:]


def losses(folder):
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path, recipe_file):
    run(recipe_file, tmp_path / "one", 1)
    run(recipe_file, tmp_path / "two", 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1  # the main process's

    run(recipe_file, tmp_path / "resumed", 2, stop_at=6)
    run(recipe_file, tmp_path / "resumed", 2)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "two")
    for name in ("model", "optimizer"):
        file = f"checkpoints/step-00000012/{name}.safetensors"
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()

    run(recipe_file, tmp_path / "changed", 1, stop_at=6)
    run(recipe_file, tmp_path / "changed", 2)
    assert losses(tmp_path / "changed") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    result = json.loads((tmp_path / "changed" / "result.json").read_text())
    assert result["parameters"] == json.loads((tmp_path / "one" / "result.json").read_text())["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_two_processes_compile_every_layer_whole(tmp_path, recipe_file, checkpointing):
    run(recipe_file, tmp_path / "one", 1)
    text = recipe_file.read_text().replace("compile: false", "compile: true")
    recipe_file.write_text(text.replace("checkpointing: none", f"checkpointing: {checkpointing}"))
    run(recipe_file, tmp_path / "two", 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert (result["graph_breaks"], result["recompiles"]) == (0, 0)
    assert result["compile_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["evaluation.positions=true", "evaluation.lengths=[16,64]"],
        ["task=mqar", "task.vocab_size=64", "task.train_lengths=[16,32]", "task.test_lengths=[16,48]"],
    ],
    ids=["text", "task"],
)
def test_two_processes_measure_what_one_measures(tmp_path, recipe_file, overrides):
    overrides = [*overrides, "training.steps=2", "training.warmup_steps=0"]
    recipe_file.write_text(load_recipe(recipe_file, overrides).to_yaml())
    results = []
    for name, processes in (("one", 1), ("two", 2)):
        run(recipe_file, tmp_path / name, processes)
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert results[0]["state_bytes"] == results[1]["state_bytes"]
    for name in ("positions", "lengths", "accuracy"):
        assert bool(results[0][name]) == (name == "accuracy" if "task=mqar" in overrides else name != "accuracy")
        for one, two in zip(results[0][name], results[1][name], strict=True):
            numbers = [{key: value for key, value in each.items() if value is not None} for each in (one, two)]
            assert numbers[1] == pytest.approx(numbers[0], rel=1e-4, abs=0.02)
