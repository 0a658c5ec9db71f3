"""Two processes train what one trains; their checkpoints are one process's and the other way round."""

import json
import re
import subprocess
import sys
import time

import pytest
import torch

from zoo.data import Batch
from zoo.errors import ConfigError, InputError
from zoo.kernels.sequence import SequenceGroup
from zoo.recipe import load_recipe
from zoo.recipe.training import ParallelConfig
from zoo.training import read_metrics, train
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


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number of at least 1, as torchrun sets it, was 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: .* was '0'"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE: .* was '-1'"),
        ({"WORLD_SIZE": "2"}, "RANK: expected a value, as WORLD_SIZE is 2; torchrun sets them all"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "here"}, "MASTER_PORT: expected a value"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, "RANK: expected less than"),
        ({"WORLD_SIZE": "2", "RANK": "", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, "RANK: .* was ''"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK: .* was '1.5'"),
    ],
)
def test_variables_that_no_launcher_sets_are_one_line(variables, line, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{line}"), join_processes("cpu"):
        pass


@pytest.mark.parametrize(
    ("parallel", "line"),
    [
        ({"data_replicate": 2}, "training.parallel.data_replicate: 2 must make the number of processes, which is 1"),
        ({"data_shard": 8}, "training.parallel.data_replicate: 1 times training.parallel.data_shard 8 must make"),
        ({"context": 2}, "training.parallel.data_replicate: 1 times training.parallel.context 2 must make the number"),
        (
            {"context": 3, "tensor": 2},
            "training.parallel.data_replicate: 1 times training.parallel.context 3 times training.parallel.tensor 2",
        ),
    ],
)
def test_processes_that_cannot_be_laid_out_are_one_line(parallel, line):
    with pytest.raises(ConfigError, match=f"^{line}"), join_processes("cpu", ParallelConfig(**parallel)):
        pass
    with pytest.raises(ConfigError, match="data_shard must be 1 or more, or -1 for all"):
        ParallelConfig.from_mapping({"data_shard": 0}, "")


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_shares_of_a_batch_are_the_batch(count):
    batch = Batch(torch.arange(30).view(6, 5), torch.arange(30).view(6, 5) + 1, torch.zeros(6, 5, dtype=torch.bool))
    shares = [Processes(torch.device("cpu"), rank, count).share_of(batch) for rank in range(count)]
    for whole, parts in zip(batch, zip(*shares, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), whole)
    odd = Processes(torch.device("cpu"), 1, 4).share_of(batch)
    assert odd is batch


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 1), (2, 3), (3, 5)])
def test_the_shares_of_a_batch_are_the_batch_in_rows_and_columns(rows, columns):
    tokens = torch.arange(6 * 15).view(6, 15)
    shares = [
        Processes(torch.device("cpu"), rank, rows * columns, group=SequenceGroup("cp", columns, torch.tensor(rank)))
        .share_of(Batch(tokens, tokens + 1, tokens == 0))
        .tokens
        for rank in range(rows * columns)
    ]
    joined = [torch.cat(shares[i : i + columns], 1) for i in range(0, rows * columns, columns)]
    assert torch.equal(torch.cat(joined), tokens)


def test_sequences_that_cannot_be_shared_evenly_are_one_line():
    with pytest.raises(ConfigError, match=r"context_length must be a multiple of parallel\.context 3, got 32"):
        load_recipe("tiny", ["training.context_length=32", "training.parallel.context=3"])


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


def launch(processes, *command, launcher=()):
    """Run a script, or a module after -m, in so many processes."""
    options = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *launcher]
    arguments = [sys.executable, *(options if processes > 1 else []), *map(str, command)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)


def run(recipe_file, folder, processes, stop_at=0):
    script = recipe_file.with_name("script.py")
    script.write_text(SCRIPT)
    finished = launch(processes, script, recipe_file, folder, stop_at)
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
@pytest.mark.parametrize("layout", ["data_shard: -1", "context: 2", "tensor: 2"])
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_two_processes_compile_every_layer_whole(tmp_path, recipe_file, checkpointing, layout):
    run(recipe_file, tmp_path / "one", 1)
    text = recipe_file.read_text().replace("compile: false", "compile: true")
    text = re.sub(rf"\b{layout.partition(':')[0]}: -?1\b", layout, text)
    recipe_file.write_text(text.replace("checkpointing: none", f"checkpointing: {checkpointing}"))
    run(recipe_file, tmp_path / "two", 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert (result["graph_breaks"], result["recompiles"]) == (0, 0)
    assert result["compile_seconds"] > 0


TOGETHER = """
import sys
from collections import Counter
from pathlib import Path
import torch
import torch.distributed as dist
from zoo.errors import TrainingError
from zoo.recipe import load_recipe
from zoo.training import SilentProgress, train
from zoo.training.distributed import join_processes
from zoo.training.engine import Engine

recipe, folder = load_recipe(sys.argv[1]), Path(sys.argv[2])
calls, counted = Counter(), []

def count(kind, name):
    collective = getattr(dist, name)

    def counting(*arguments, **options):
        calls[kind] += 1
        return collective(*arguments, **options)

    setattr(dist, name, counting)

for kind, names in {  # former names and later ones
    "gather": ("all_gather_into_tensor", "all_gather_single"),
    "reduce": ("reduce_scatter_tensor", "reduce_scatter_single"),
}.items():
    for name in names:
        if hasattr(dist, name):
            count(kind, name)

step = Engine.step

def counting(self, number, accept=None):
    calls.clear()
    values = step(self, number, accept)
    counted.append((calls["gather"], calls["reduce"]))
    return values

Engine.step = counting
for accumulate in (1, 30):
    shares = recipe.override([f"training.accumulate={accumulate}"])
    result = train(shares, folder / str(accumulate), device="cpu")  # one after the other in the same processes
    assert train(shares, folder / str(accumulate), device="cpu") == result
replicas = recipe.override(["training.accumulate=1", "training.parallel.data_replicate=2"])
train(replicas, folder / "replicas", device="cpu")
train(recipe.override(["training.accumulate=1", "training.parallel.context=2"]), folder / "context", device="cpu")
steps = recipe.training.steps
assert all(count == counted[0] for count in counted[:steps]), counted
assert all(count == (3, 3) for count in counted[steps : 2 * steps]), counted  # of two layers and the rest, once each
with join_processes("cpu") as processes:
    assert processes.from_main(lambda: processes.rank) == 0
    def fail():
        raise TrainingError("of the first")
    try:
        processes.from_main(fail)
    except TrainingError as error:
        assert str(error) == "of the first"
    else:
        raise AssertionError
print("all of it", flush=True)
"""


def test_two_processes_train_twice_and_communicate_once_a_step(tmp_path, recipe_file):
    recipe_file.write_text(recipe_file.read_text().replace("steps: 12", "steps: 4").replace("tensorboard: true", ""))
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    finished = launch(2, script, recipe_file, tmp_path)
    assert finished.stdout.count("all of it") == 2, finished.stderr[-3000:]
    for accumulate in (1, 30):
        alone = load_recipe(str(recipe_file), [f"training.accumulate={accumulate}"])
        train(alone, tmp_path / "alone" / str(accumulate), device="cpu")
        expected = losses(tmp_path / "alone" / str(accumulate))
        for folder in (str(accumulate), *(["replicas", "context"] if accumulate == 1 else [])):
            assert losses(tmp_path / folder) == pytest.approx(expected, rel=1e-5), folder


BUILT_WITHOUT_SHARES = """
from zoo.cli import main
from zoo.mixers import mixers
mixers["gla"].build.halo = None
mixers["gla"].build.head_groups = None
main()
"""


@pytest.mark.slow
def test_what_all_fail_of_is_told_once(tmp_path, recipe_file):
    script = tmp_path / "without_shares.py"
    script.write_text(BUILT_WITHOUT_SHARES)
    for override, line in (
        ("mixer=gla training.parallel.context=2", "training.parallel.context: must be 1 with mixer gla, which takes"),
        ("mixer=gla training.parallel.tensor=2", "training.parallel.tensor: must be 1 with mixer gla, whose heads"),
        ("model.heads=1 training.parallel.tensor=2", "training.parallel.tensor: must divide the 1 key/value heads of"),
        ("training.parallel.tensor=4", "training.parallel.data_replicate: 1 times training.parallel.tensor 4 must"),
        ("training.parallel.data_replicate=3", "training.parallel.data_replicate: 3 must make the number of processes"),
        ("training.batch_size=3", "training.batch_size: expected a multiple of the 2 processes, got 3"),
        ("training.parallel.data_shard=3", "training.parallel.data_replicate: 1 times"),
        ("training.parallel.context=5", "training: context_length must be a multiple of parallel.context 5, got 32"),
        ("mixer=sliding-window mixer.window=18 training.parallel.context=2", "expected shares of at least 17 tokens"),
        ("training.stepz=1", "training.stepz"),
    ):
        begun = time.monotonic()
        finished = launch(
            2, script, "train", recipe_file, "--folder", tmp_path / "run", "--device=cpu", *override.split()
        )
        assert time.monotonic() - begun < 120  # nobody waits for the others
        assert finished.returncode != 0
        assert "(exitcode: 2) local_rank: 0" in finished.stderr
        errors = [text for text in finished.stderr.splitlines() if text.startswith("Error: ")]
        assert len(errors) == 1, finished.stderr
        assert line in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_costs_nothing(tmp_path, recipe_file, rank, monkeypatch):
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # without it torch's launcher hangs at a restart
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    run(recipe_file, tmp_path / "whole", 2)
    finished = launch(2, script, recipe_file, tmp_path / "killed", rank, 7, launcher=["--max-restarts=1"])
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for name in ("model", "optimizer"):
        file = f"checkpoints/step-00000012/{name}.safetensors"
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


KILLED = """
import os, signal, sys
from zoo.recipe import load_recipe
from zoo.training import train
import zoo.training.engine as engine
step = engine.Engine.step

def killing(self, number, accept=None):
    restarted = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if not restarted and number == int(sys.argv[4]) and os.environ["RANK"] == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, accept)

engine.Engine.step = killing
train(load_recipe(sys.argv[1]), sys.argv[2], device="cpu")
"""


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 2])
def test_ranks_that_are_killed_at_random_cost_nothing(tmp_path, recipe_file, context, monkeypatch):
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    recipe_file.write_text(
        load_recipe(recipe_file, ["training.steps=40", f"training.parallel.context={context}"]).to_yaml()
    )
    script, kills = tmp_path / "killed.py", tmp_path / "kills"
    script.write_text(KILLED_AT_RANDOM)
    run(recipe_file, tmp_path / "whole", 2)
    finished = launch(2, script, recipe_file, tmp_path / "killed", kills, launcher=["--max-restarts=20"])
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert len(kills.read_text().splitlines()) == 20
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for name in ("model", "optimizer"):
        file = f"checkpoints/step-00000040/{name}.safetensors"
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


KILLED_AT_RANDOM = """
import os, random, signal, sys, threading
from zoo.recipe import load_recipe
from zoo.training import train
import zoo.training.engine as engine

restarts, draw = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), random.Random(os.environ["TORCHELASTIC_RESTART_COUNT"])

def kill():
    with open(sys.argv[3], "a") as file:
        file.write(f"{restarts}\\n")
    os.kill(os.getpid(), signal.SIGKILL)

recipe, step = load_recipe(sys.argv[1]), engine.Engine.step

def killing(self, number, accept=None):
    if number == recipe.training.steps:
        kill()
    return step(self, number, accept)

if restarts < 20 and draw.randrange(2) == int(os.environ["RANK"]):
    engine.Engine.step = killing
    timer = threading.Timer(draw.uniform(0, 1.5), kill)
    timer.daemon = True
    timer.start()
train(recipe, sys.argv[2], device="cpu")
"""


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize(
    "overrides",
    [
        ["evaluation.positions=true", "evaluation.lengths=[16,63]"],
        ["task=mqar", "task.vocab_size=64", "task.train_lengths=[16,32]", "task.test_lengths=[16,48,49]"],
    ],
    ids=["text", "task"],
)
def test_two_processes_measure_what_one_measures(tmp_path, recipe_file, overrides, context):
    overrides = [*overrides, "training.steps=2", "training.warmup_steps=0"]
    recipe_file.write_text(load_recipe(recipe_file, overrides).to_yaml())
    results = []
    for name, processes in (("one", 1), ("two", 2)):
        if processes == context == 2:  # lengths that they cannot share evenly among them
            recipe_file.write_text(recipe_file.read_text().replace("context: 1", "context: 2"))
        run(recipe_file, tmp_path / name, processes)
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert results[0]["state_bytes"] == results[1]["state_bytes"]
    for name in ("positions", "lengths", "accuracy"):
        assert bool(results[0][name]) == (name == "accuracy" if "task=mqar" in overrides else name != "accuracy")
        for one, two in zip(results[0][name], results[1][name], strict=True):
            numbers = [{key: value for key, value in each.items() if value is not None} for each in (one, two)]
            assert numbers[1] == pytest.approx(numbers[0], rel=1e-4, abs=0.02)
