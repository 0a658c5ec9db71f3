"""Runs on tasks through the real loop: resumed bitwise, measured, and refused where something does not fit."""

import json

import pytest

from zoo.errors import CheckpointError, CorpusError, InputError
from zoo.recipe import load_recipe
from zoo.tasks import tasks
from zoo.training import load_result, read_metrics, run_status, train
from zoo.training.run.result import read_result

from .stopping import StopAt

SMALL = [
    "model.width=16", "model.layers=1", "model.heads=2", "model.feed_forward_width=16", "training.context_length=48",
    "training.batch_size=2", "training.steps=6", "training.checkpoint_every=3", "training.log_every=2",
    "training.evaluate_every=3", "training.evaluation_tokens=192", "training.warmup_steps=0",
]  # fmt: skip
LENGTHS = ["task.train_lengths=[16,24]", "task.test_lengths=[16,64]"]
TEXT = [*SMALL, "training.compile=false"]


def small_recipe(kind, *overrides):
    return load_recipe("tiny", [f"task={kind}", *SMALL, *LENGTHS, *overrides])


def lines(folder):
    kept = ("kind", "step", "loss", "accuracy")
    return [[record.get(key) for key in kept] for record in read_metrics(folder / "metrics.jsonl")]


PLAIN = ("training.compile=false",)
COMPILED = ("training.compile=true", "task.vocab_size=64", "mixer=gated-power")


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        *(pytest.param(kind, PLAIN, id=kind) for kind in tasks),
        pytest.param("mqar", COMPILED, id="mqar, compiled", marks=pytest.mark.slow),
    ],
)
def test_a_run_on_a_task_goes_on_bitwise(tmp_path, kind, overrides):
    recipe = small_recipe(kind, *overrides)
    straight = train(recipe, tmp_path / "straight", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "resumed", device="cpu", progress=StopAt(5))
    resumed = train(recipe, tmp_path / "resumed", device="cpu")
    assert lines(tmp_path / "straight") == lines(tmp_path / "resumed")
    assert straight.accuracy == resumed.accuracy
    assert {entry["length"] for entry in straight.accuracy} == {16, 64}
    assert straight == load_result(tmp_path / "straight")
    assert (straight.graph_breaks, straight.recompiles) == (0, 0)
    validation = [record for record in read_metrics(tmp_path / "straight" / "metrics.jsonl") if "accuracy" in record]
    assert [record["step"] for record in validation] == [0, 3, 6]
    assert straight.positions == straight.lengths == []


@pytest.mark.slow
def test_compiled_and_plain_measures_are_the_same(tmp_path):
    """At a length of training, at others, and with more rows than one and with one alone."""
    overrides = ["mixer=power", "evaluation.lengths=[16,24,96,200]"]
    compiled, plain = (
        train(small_recipe("copy", *overrides, f"training.compile={value}"), tmp_path / value, device="cpu")
        for value in ("true", "false")
    )
    for one, other in zip(compiled.accuracy, plain.accuracy, strict=True):
        assert one["answers"] == other["answers"]
        assert one["accuracy"] == pytest.approx(other["accuracy"], abs=0.02)
    evaluation = ["evaluation.positions=true", "evaluation.lengths=[24,96,200]"]
    texts = [
        train(load_recipe("tiny", [*SMALL, *evaluation, f"training.compile={value}"]), tmp_path / f"text-{value}")
        for value in ("true", "false")
    ]
    for name in ("positions", "lengths"):
        for one, other in zip(*(getattr(text, name) for text in texts), strict=True):
            assert one.pop("loss") == pytest.approx(other.pop("loss"), rel=1e-3)
            assert one == pytest.approx(other, rel=1e-3)
    assert texts[0].positions[-1]["end"] == 200
    assert texts[0].recompiles == 0


def test_a_finished_run_is_measured_anew_where_that_is_asked_for(tmp_path, corpus):
    recipe = load_recipe("tiny", TEXT)
    first = train(recipe, tmp_path, corpus=corpus, device="cpu")
    more = recipe.override(["evaluation.lengths=[8]", "evaluation.positions=true"])
    assert first.positions == first.lengths == []
    assert (run_status(tmp_path, recipe), run_status(tmp_path, more)) == ("finished", "unfinished")
    second = train(more, tmp_path, corpus=corpus, device="cpu")
    assert second.final_validation_loss == first.final_validation_loss
    assert [entry["length"] for entry in second.lengths] == [8]
    assert [entry["end"] for entry in second.positions] == [1, 2, 4, 8, 16, 32, 48]
    assert run_status(tmp_path, more) == "finished"
    assert second == load_result(tmp_path)


def test_the_state_is_that_of_the_longest_length(tmp_path, corpus):
    recipe = load_recipe("tiny", [*TEXT, "evaluation.lengths=[100]", "training.steps=1"])
    result = train(recipe, tmp_path / "softmax", corpus=corpus, device="cpu")
    assert result.state_bytes == 2 * 16 * 100 * 4 + 16  # keys and values in float32, and two counts
    assert result.peak_memory_bytes is None
    linear = train(recipe.override(["mixer=linear"]), tmp_path / "linear", corpus=corpus, device="cpu")
    longer = train(recipe.override(["mixer=linear", "evaluation.lengths=[]"]), tmp_path / "l", corpus=corpus)
    assert linear.state_bytes == longer.state_bytes < result.state_bytes


def test_a_result_of_an_earlier_version_loads(tmp_path, corpus):
    result = train(load_recipe("tiny", TEXT), tmp_path, corpus=corpus, device="cpu")
    path = tmp_path / "result.json"
    fields = json.loads(path.read_text())
    for name in ("positions", "lengths", "accuracy", "state_bytes", "peak_memory_bytes", "metrics", "sha256"):
        del fields[name]  # as a version wrote it that knew neither these nor extents
    path.write_text(json.dumps(fields))
    found, _ = read_result(path)
    assert (found.positions, found.accuracy, found.lengths, found.state_bytes) == ([], [], [], None)
    assert found.final_bits_per_byte == result.final_bits_per_byte


def test_what_a_task_has_no_use_for_is_refused_before_anything_is_written(tmp_path, corpus):
    with pytest.raises(InputError, match="corpus: expected none for task s5, which draws what it trains on"):
        train(small_recipe("s5"), tmp_path / "run", corpus=corpus)
    with pytest.raises(CorpusError, match=r"evaluation\.lengths: the 1000 tokens of validation data are too few for"):
        train(load_recipe("tiny", [*TEXT, "evaluation.lengths=[1000]"]), tmp_path / "run", corpus=corpus)
    assert not (tmp_path / "run").exists()


def test_a_run_on_another_task_is_refused_by_name(tmp_path):
    train(small_recipe("parity", "training.compile=false", "training.steps=1"), tmp_path, device="cpu")
    other = small_recipe("parity", "training.compile=false", "training.steps=1", "task.train_lengths=[24]")
    with pytest.raises(CheckpointError, match=r"holds a run with task\.train_lengths=\[16, 24\], not \[24\]"):
        train(other, tmp_path, device="cpu")
    with pytest.raises(CheckpointError, match=r"holds a run with .*; choose another folder"):
        train(load_recipe("tiny", TEXT), tmp_path, device="cpu")


@pytest.mark.slow
def test_softmax_learns_to_copy_and_a_small_state_does_less_well(tmp_path):
    """With the same settings: softmax keeps all sixteen symbols, linear attention 8 x 8 numbers a head."""
    size = ["model.width=32", "model.layers=2", "model.heads=4", "model.feed_forward_width=64"]
    length = ["task.train_lengths=[32]", "task.test_lengths=[32]", "training.context_length=32"]
    steps = ["training.steps=300", "training.warmup_steps=20", "training.learning_rate=5e-3", "training.batch_size=32"]
    quick = ["training.compile=false", "training.evaluation_tokens=2048"]
    found = {}
    for mixer in ("softmax", "linear"):
        recipe = load_recipe("tiny", ["task=copy", "task.symbols=16", f"mixer={mixer}", *size, *length, *steps, *quick])
        (total,) = train(recipe, tmp_path / mixer, device="cpu").accuracy
        found[mixer] = total["accuracy"]
    assert found["softmax"] > 0.99
    assert 0.5 < found["linear"] < 0.97
