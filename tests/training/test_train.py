"""Real recipes, shrunk: trained, resumed, loaded again."""

import importlib
import json
import logging
import shutil

import pytest
import torch

from zoo.builder import build, shrink
from zoo.errors import CheckpointError, ConfigError, CorpusError, TrainingError
from zoo.recipe import load_recipe
from zoo.training import (
    SilentProgress,
    load_checkpoint_model,
    load_result,
    load_run,
    read_metrics,
    run_status,
    train,
)
from zoo.training.run import RunFolder

SHORT = [
    "training.steps=6",
    "training.checkpoint_every=3",
    "training.log_every=2",
    "training.evaluate_every=3",
    "training.evaluation_tokens=256",
    "training.context_length=32",
    "training.warmup_steps=2",
    "training.compile=false",
]


def short_recipe(name, *overrides):
    return shrink(load_recipe(name)).override([*SHORT, *overrides])


def losses(folder):
    return [(record["step"], record["loss"]) for record in read_metrics(folder / "metrics.jsonl")]


class StopError(Exception):
    pass


class StopAt(SilentProgress):
    def __init__(self, step):
        self._step = step

    def advance(self, step):
        if step == self._step:
            raise StopError


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("tiny", ["mixer=gated-power"]), ("gpt2-124m", []), ("hybrid-124m", []), ("llama-360m", ["mixer=gated-linear"])],
)
def test_a_recipe_trains_resumes_and_loads(tmp_path, corpus, name, overrides):
    recipe = short_recipe(name, *overrides)
    random_state = torch.get_rng_state()
    straight = train(recipe, tmp_path / "straight", corpus=corpus, device="cpu")
    assert torch.equal(torch.get_rng_state(), random_state)
    with pytest.raises(StopError):
        train(recipe, tmp_path / "resumed", corpus=corpus, device="cpu", progress=StopAt(5))
    resumed = train(recipe, tmp_path / "resumed", corpus=corpus, device="cpu")
    assert losses(tmp_path / "straight") == losses(tmp_path / "resumed")
    assert straight.final_bits_per_byte == resumed.final_bits_per_byte
    model = build(recipe)
    sequences = recipe.training.batch_size * recipe.training.accumulate
    assert straight.parameters == model.num_parameters()
    assert straight.flops == 3 * model.flops(32) * sequences * 6

    loaded_recipe, loaded = load_run(tmp_path / "straight")
    other = load_checkpoint_model(tmp_path / "resumed")
    assert loaded_recipe == recipe
    assert not loaded.training
    tokens = torch.arange(97, 113)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, other(tokens).logits)
    assert not torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_status_and_result_of_a_run(tmp_path, corpus):
    recipe = short_recipe("tiny")
    folder = tmp_path / "run"
    assert run_status(folder) == run_status(folder, recipe) == "missing"
    with pytest.raises(CheckpointError, match="holds no run; expected a folder that zoo train wrote"):
        load_run(folder)
    with pytest.raises(StopError):
        train(recipe, folder, corpus=corpus, progress=StopAt(2))
    assert run_status(folder, recipe) == "unfinished"
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        load_run(folder)
    with pytest.raises(CheckpointError, match="holds no finished run"):
        load_result(folder)
    result = train(recipe, folder, corpus=corpus)
    assert run_status(folder, recipe) == "finished"
    assert result == load_result(folder) == train(recipe, folder, corpus=corpus)
    for mixer in ("sliding-window", "linear", "gated-linear"):
        with pytest.raises(CheckpointError, match=rf"holds a run with mixer\.name=.*, not {mixer}; choose another"):
            run_status(folder, recipe.override([f"mixer={mixer}"]))
    (folder / "result.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"result\.json: not the result of a run; delete it and train again"):
        load_result(folder)
    (folder / "result.json").unlink()
    assert train(recipe, folder, corpus=corpus) == result


def test_a_damaged_newest_checkpoint_costs_only_its_steps(tmp_path, corpus, caplog):
    recipe = short_recipe("tiny")
    result = train(recipe, tmp_path, corpus=corpus)
    before = losses(tmp_path)
    (tmp_path / "result.json").unlink()
    (tmp_path / "checkpoints" / "step-00000006" / "optimizer.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        again = train(recipe, tmp_path, corpus=corpus)
    assert "step-00000006/optimizer.safetensors is damaged" in caplog.text
    assert losses(tmp_path) == before
    assert again.final_bits_per_byte == result.final_bits_per_byte


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path, corpus):
    recipe = short_recipe("tiny", "model.vocab_size=256")
    with pytest.raises(ConfigError, match=r"model\.vocab_size: must be at least the corpus's 257, got 256"):
        train(recipe, tmp_path, corpus=corpus)


def test_bfloat16_trains_nearly_as_float32(tmp_path, corpus):
    plain = train(short_recipe("tiny", "training.autocast=none"), tmp_path / "plain", corpus=corpus)
    half = train(short_recipe("tiny", "training.autocast=bfloat16"), tmp_path / "half", corpus=corpus)
    assert half.final_loss != plain.final_loss
    assert half.final_loss == pytest.approx(plain.final_loss, rel=0.02)
    assert {value.dtype for value in load_checkpoint_model(tmp_path / "half").parameters()} == {torch.float32}


def test_nothing_is_written_for_a_corpus_that_does_not_fit(tmp_path, corpus):
    folder = tmp_path / "run"
    with pytest.raises(CorpusError, match=r"validation data: 1000 tokens are too few for context_length 2000"):
        train(short_recipe("tiny", "training.context_length=2000"), folder, corpus=corpus)
    with pytest.raises(CorpusError):
        train(short_recipe("tiny", f"data.source={tmp_path}/missing.txt"), folder)
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, corpus):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file/run: cannot be written: Not a directory"):
        train(short_recipe("tiny"), tmp_path / "file" / "run", corpus=corpus)


def test_two_processes_do_not_train_in_one_folder(tmp_path, corpus):
    class Second(SilentProgress):
        def advance(self, step):
            with pytest.raises(TrainingError, match="run: another process is training here"):
                train(short_recipe("tiny"), tmp_path / "run", corpus=corpus)

    train(short_recipe("tiny"), tmp_path / "run", corpus=corpus, progress=Second())


def test_a_folder_in_use_is_neither_read_nor_written(tmp_path, corpus):
    """What stands there belongs to the process that trains, which may take it away at any moment."""
    recipe = short_recipe("tiny")
    train(recipe, tmp_path, corpus=corpus)
    (tmp_path / "result.json").unlink()
    for place in (tmp_path / "checkpoints").iterdir():
        (place / "model.safetensors").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with RunFolder(tmp_path).locked(), pytest.raises(TrainingError, match="another process is training here"):
        train(recipe, tmp_path, corpus=corpus)
    with RunFolder(tmp_path / "new").locked(), pytest.raises(TrainingError, match="another process is training here"):
        train(recipe, tmp_path / "new", corpus=corpus)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "new").rmdir()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_compiled_run_compiles_once_for_each_mode(tmp_path, corpus):
    overrides = ["model.layers=1", "mixer=linear"]
    plain = train(short_recipe("tiny", *overrides), tmp_path / "plain", corpus=corpus)
    recipe = short_recipe("tiny", *overrides, "training.compile=true")
    for name in ("first", "second"):
        result = train(recipe, tmp_path / name, corpus=corpus)
        assert (result.graph_breaks, result.recompiles) == (0, 0)
        assert result.compile_seconds > 0
        assert result.final_bits_per_byte == pytest.approx(plain.final_bits_per_byte, rel=1e-3)
        facts = json.loads((tmp_path / name / "checkpoints" / "step-00000006" / "checkpoint.json").read_text())["facts"]
        assert facts["compilation"]["graphs"] == 2
        assert facts["seconds"] < result.compile_seconds
    assert losses(tmp_path / "first") == losses(tmp_path / "second")


def test_a_run_begins_with_the_weights_of_another(tmp_path, corpus):
    before = train(short_recipe("tiny"), tmp_path / "before", corpus=corpus)
    recipe = short_recipe("tiny", f"training.start_from={tmp_path / 'before'}", "training.seed=5")
    straight = train(recipe, tmp_path / "straight", corpus=corpus)
    found = [r["bits_per_byte"] for r in read_metrics(tmp_path / "straight" / "metrics.jsonl") if "bits_per_byte" in r]
    assert found[0] == before.final_bits_per_byte
    with pytest.raises(StopError):
        train(recipe, tmp_path / "resumed", corpus=corpus, progress=StopAt(5))
    shutil.rmtree(tmp_path / "before")  # of no use any more
    assert train(recipe, tmp_path / "resumed", corpus=corpus).final_bits_per_byte == straight.final_bits_per_byte
    with pytest.raises(CheckpointError, match=r"holds a run with training.start_from=None, not "):
        train(recipe, train_and_name(tmp_path / "drawn", corpus), corpus=corpus)


def train_and_name(folder, corpus):
    train(short_recipe("tiny", "training.seed=5"), folder, corpus=corpus)
    return folder


def test_weights_that_a_run_can_not_begin_with_leave_nothing_behind(tmp_path, corpus):
    train(short_recipe("tiny"), tmp_path / "before", corpus=corpus)
    for source, overrides, says in (
        ("missing", (), "training.start_from: .*missing: holds no run"),
        ("before", ("model.layers=5",), "training.start_from: .*before.*is of another model"),
        ("before", ("data.tokenizer=none", "data.vocab_size=257"), "expected a run with data.tokenizer=none, .*bytes"),
    ):
        recipe = short_recipe("tiny", f"training.start_from={tmp_path / source}", *overrides)
        with pytest.raises(CheckpointError, match=says):
            train(recipe, tmp_path / "run", corpus=corpus)
        assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_layers_compiled_by_themselves_share_their_graphs(tmp_path, corpus):
    overrides = ["model.layers=3", "mixer=linear"]
    train(short_recipe("tiny", *overrides), tmp_path / "plain", corpus=corpus)
    result = train(short_recipe("tiny", *overrides, "training.compile=layers"), tmp_path / "layers", corpus=corpus)
    assert (result.graph_breaks, result.recompiles) == (0, 0)
    found, wanted = (dict(losses(tmp_path / name)) for name in ("layers", "plain"))
    for step in sorted(wanted)[:2]:  # of steps before the rounding of gradients grows
        assert found[step] == pytest.approx(wanted[step], rel=5e-5)
    facts = json.loads((tmp_path / "layers" / "checkpoints" / "step-00000006" / "checkpoint.json").read_text())["facts"]
    assert facts["compilation"]["graphs"] == 2  # of all three layers, one for steps and one for evaluations


def test_any_number_of_layers_that_differ_compile_by_themselves(tmp_path, corpus, monkeypatch):
    """Those of HGRN2 all do, by their least gates; the compiler alone gives up after eight."""
    compile_by = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compile_by(self, backend="aot_eager", **options)
    )
    overrides = ["model.layers=11", "mixer=hgrn2", "training.compile=layers"]
    result = train(short_recipe("tiny", *overrides), tmp_path, corpus=corpus)
    assert (result.graph_breaks, result.recompiles) == (0, 0)


@pytest.mark.parametrize("mixer", ["gated-power", "gated-linear", "mamba2", "rwkv7", "softmax"])
def test_divergence_has_the_same_words_wherever_values_are_looked_at(tmp_path, corpus, monkeypatch, mixer):
    """On a CPU, gates that are not finite are refused by the op; on a GPU, and compiled, the loss tells them."""
    recipe = short_recipe("tiny", f"mixer={mixer}")
    update = torch.optim.AdamW.step

    def diverge(optimizer, *arguments):
        update(optimizer, *arguments)
        calls.append(None)
        if len(calls) == 4:
            optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", diverge)
    lines = []
    for is_known in (True, False):
        calls = []
        folder = tmp_path / "run"
        if not is_known:
            for op in ("power", "delta", "rwkv7"):
                checks = importlib.import_module(f"zoo.kernels.{op}.checks")
                monkeypatch.setattr(checks, "known", lambda x: False, raising=False)
        with pytest.raises(TrainingError) as caught:
            train(recipe, folder, corpus=corpus, device="cpu")
        lines.append(str(caught.value))
        shutil.rmtree(folder)
    assert lines[0] == lines[1]
    assert lines[0].startswith(
        "step 5: the loss is nan, on the 4 windows from number 16 of epoch 0 in the order of seed 0"
    )
    assert lines[0].endswith("step-00000003")
