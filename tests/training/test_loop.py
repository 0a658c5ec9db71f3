"""The loop: what it writes, that it learns, that it resumes exactly, and how it stops."""

import contextlib
import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from zoo.errors import CheckpointError, TrainingError
from zoo.training import SilentProgress, read_metrics
from zoo.training.engine import Engine
from zoo.training.run.metrics import MetricsLog

TIMES = {"seconds", "tokens_per_second"}


class Interruption(SilentProgress):
    """Ctrl-C after a given step."""

    def __init__(self, step):
        self._step = step

    def advance(self, step):
        if step == self._step:
            raise KeyboardInterrupt


def untimed(folder):
    records = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def weights(folder, step=12):
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    return {
        f"{name}/{key}": tensor
        for name in ("model", "optimizer", "generators")
        for key, tensor in load_file(checkpoint / f"{name}.safetensors").items()
    }


def assert_same_run(one, other):
    assert untimed(one) == untimed(other)
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_writes_every_line_and_the_newest_checkpoints(tmp_path, tiny_recipe, train_tiny, tiny_model):
    result = train_tiny(tiny_recipe(), tmp_path)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records if record["kind"] == "train"] == [3, 6, 9, 12]
    assert [record["step"] for record in records if record["kind"] == "validation"] == [0, 5, 10, 12]
    assert [record["step"] for record in records] == sorted(record["step"] for record in records)
    for record in records:
        assert record["tokens"] == record["step"] * 8 * 4
        assert record["flops"] == 3 * tiny_model().flops(8) * 4 * record["step"]
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]

    validation = [record for record in records if record["kind"] == "validation"]
    assert result.final_bits_per_byte == validation[-1]["bits_per_byte"]
    assert result.best_bits_per_byte == min(record["bits_per_byte"] for record in validation[1:])
    assert result.final_validation_loss == validation[-1]["loss"]
    assert (result.steps, result.tokens, result.flops) == (12, 12 * 32, validation[-1]["flops"])
    assert result.parameters == tiny_model().num_parameters()
    assert (result.graph_breaks, result.recompiles, result.compile_seconds) == (0, 0, 0.0)
    assert result.folder == tmp_path


def test_learns(tmp_path, tiny_recipe, train_tiny):
    result = train_tiny(tiny_recipe(steps=300, evaluate_every=100, log_every=50, checkpoint_every=300), tmp_path)
    first = read_metrics(tmp_path / "metrics.jsonl")[0]["bits_per_byte"]
    assert first > 7
    assert result.final_bits_per_byte < 3.5


def test_repeats_itself_bitwise(tmp_path, tiny_recipe, train_tiny):
    train_tiny(tiny_recipe(), tmp_path / "one")
    train_tiny(tiny_recipe(), tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")
    train_tiny(tiny_recipe(seed=2), tmp_path / "three")
    assert untimed(tmp_path / "one") != untimed(tmp_path / "three")


def test_repeats_itself_bitwise_compiled_on_two_threads(tmp_path, tiny_recipe, train_tiny):
    # Inductor's threads would add the embedding's gradient atomically, in whichever order they come.
    recipe = tiny_recipe(compile=True, context_length=128, batch_size=16, steps=40, checkpoint_every=40)
    torch.set_num_threads(2)
    try:
        for name in ("one", "two"):
            train_tiny(recipe, tmp_path / name)
    finally:
        torch.set_num_threads(1)
    left, right = weights(tmp_path / "one", 40), weights(tmp_path / "two", 40)
    assert untimed(tmp_path / "one") == untimed(tmp_path / "two")
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return tmp_path_factory.mktemp("straight")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(interruptions=st.lists(st.integers(1, 12), min_size=1, max_size=3), data=st.data())
def test_resumed_run_is_the_uninterrupted_one(interruptions, data, straight, tmp_path_factory, tiny_recipe, train_tiny):
    recipe = tiny_recipe()
    if not (straight / "result.json").exists():
        train_tiny(recipe, straight)
    folder = tmp_path_factory.mktemp("interrupted")
    for step in interruptions:
        with contextlib.suppress(KeyboardInterrupt):
            train_tiny(recipe, folder, progress=Interruption(step))
        if data.draw(st.booleans(), label="torn line"):
            with (folder / "metrics.jsonl").open("ab") as file:
                file.write(b'{"kind": "train", "st')
    result = train_tiny(recipe, folder)
    assert_same_run(straight, folder)
    seconds = [record["seconds"] for record in read_metrics(folder / "metrics.jsonl")]
    assert seconds == sorted(seconds)
    assert result.seconds == seconds[-1]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(at=111, after=False)  # between the last checkpoint and deleting the oldest
@given(at=st.integers(1, 200), after=st.booleans())
def test_ctrl_c_at_any_moment_costs_nothing_but_time(
    at, after, straight, tmp_path_factory, tiny_recipe, train_tiny, fault_at
):
    recipe = tiny_recipe()
    if not (straight / "result.json").exists():
        train_tiny(recipe, straight)
    folder = tmp_path_factory.mktemp("interrupted")
    also = [(MetricsLog, "append"), (Engine, "step"), (Engine, "evaluate"), (Engine, "tensors")]
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.suppress(KeyboardInterrupt):
        fault_at(monkeypatch, KeyboardInterrupt(), at, after, also)
        train_tiny(recipe, folder)
    train_tiny(recipe, folder)
    assert_same_run(straight, folder)
    names = {"recipe.yaml", "metrics.jsonl", "checkpoints", "result.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]


def test_resumes_in_the_middle_of_a_logged_stretch(tmp_path, tiny_recipe, train_tiny):
    recipe = tiny_recipe(log_every=5, checkpoint_every=4)
    train_tiny(recipe, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train_tiny(recipe, tmp_path / "resumed", progress=Interruption(4))
    train_tiny(recipe, tmp_path / "resumed")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_accumulation_is_a_larger_batch(tmp_path, tiny_recipe, train_tiny, tiny_model):
    runs = {}
    for batch_size, accumulate in ((8, 1), (4, 2), (2, 4)):
        folder = tmp_path / str(accumulate)
        torch.manual_seed(3)
        recipe = tiny_recipe(batch_size=batch_size, accumulate=accumulate)
        train_tiny(recipe, folder, model=tiny_model(dropout=0.0))
        runs[accumulate] = (
            {name: tensor for name, tensor in weights(folder).items() if name.startswith("model/")},
            [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "train"],
        )
    for accumulate in (2, 4):
        assert runs[accumulate][1] == pytest.approx(runs[1][1], rel=1e-5)
        for name, tensor in runs[1][0].items():
            torch.testing.assert_close(runs[accumulate][0][name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, tiny_recipe, train_tiny, tiny_model, value):
    class Diverging(tiny_model):
        calls = 0

        def forward(self, tokens, *, resets=None):
            output = super().forward(tokens, resets=resets)
            self.calls += self.training
            return output._replace(logits=output.logits + (value if self.calls == 8 else 0.0))

    with pytest.raises(TrainingError) as caught:
        train_tiny(tiny_recipe(), tmp_path, model=Diverging())
    message = str(caught.value)
    assert "step 8: the loss is nan" in message
    assert "4 windows from number 28 of epoch 0" in message
    assert "step-00000004" in message
    assert "\n" not in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    train_tiny(tiny_recipe(), tmp_path)  # with a sound model it goes on from there


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path, tiny_recipe, train_tiny, tiny_model):
    class Exploding(tiny_model):
        def forward(self, tokens, *, resets=None):
            output = super().forward(tokens, resets=resets)
            output.logits.register_hook(lambda gradient: gradient * math.inf) if self.training else None
            return output

    with pytest.raises(TrainingError, match=r"step 1: the gradient norm is .*; there is no checkpoint yet"):
        train_tiny(tiny_recipe(), tmp_path, model=Exploding())


def test_another_recipe_is_refused_by_its_first_different_key(tmp_path, tiny_recipe, train_tiny):
    train_tiny(tiny_recipe(), tmp_path)
    with pytest.raises(CheckpointError, match=r"holds a run with training\.learning_rate=0\.01, not 0\.02"):
        train_tiny(tiny_recipe(learning_rate=0.02, seed=5), tmp_path)
    train_tiny(tiny_recipe().replace(description="other words"), tmp_path)


def test_a_foreign_checkpoint_is_refused(tmp_path, tiny_recipe, train_tiny, corpus, tiny_model):
    train_tiny(tiny_recipe(), tmp_path / "one")
    train_tiny(tiny_recipe(seed=9), tmp_path / "two")
    (tmp_path / "two" / "checkpoints").rename(tmp_path / "kept")
    (tmp_path / "one" / "checkpoints").rename(tmp_path / "two" / "checkpoints")
    with pytest.raises(CheckpointError, match=r"step-00000012: holds a run with training\.seed=1, not 9"):
        train_tiny(tiny_recipe(seed=9), tmp_path / "two")


def test_a_changed_corpus_is_refused(tmp_path, tiny_recipe, train_tiny, corpus):
    train_tiny(tiny_recipe(), tmp_path)
    object.__setattr__(corpus, "hash", "f" * 64)
    try:
        with pytest.raises(CheckpointError, match=r"another corpus \(sha256 000000000000, now ffffffffffff\)"):
            train_tiny(tiny_recipe(), tmp_path)
    finally:
        object.__setattr__(corpus, "hash", "0" * 64)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path, tiny_recipe, train_tiny, tiny_model):
    train_tiny(tiny_recipe(), tmp_path)
    wider = tiny_model()
    wider.layers.append(torch.nn.Linear(8, 8))
    with pytest.raises(CheckpointError, match=r"lacks layers\.2\.(weight|bias), so it is of another model"):
        train_tiny(tiny_recipe(), tmp_path, model=wider)
    other = tiny_model()
    other.layers[0] = torch.nn.Linear(8, 8, bias=False)
    with pytest.raises(CheckpointError, match=r"has layers\.0\.bias, which this model has not"):
        train_tiny(tiny_recipe(), tmp_path, model=other)
    wrong = tiny_model()
    wrong.norm.weight = torch.nn.Parameter(torch.ones(8, dtype=torch.float64))
    with pytest.raises(CheckpointError, match=r"norm\.weight is float32 \[8\], this model's is float64 \[8\]"):
        train_tiny(tiny_recipe(), tmp_path, model=wrong)


def test_progress_is_told_of_steps_and_metrics_and_always_finished(tmp_path, tiny_recipe, train_tiny):
    class Recorder(SilentProgress):
        def __init__(self, fail_at):
            self.calls, self.fail_at = [], fail_at

        def start(self, step, steps):
            self.calls.append(("start", step, steps))

        def advance(self, step):
            self.calls.append(("advance", step))
            if step == self.fail_at:
                raise KeyboardInterrupt

        def metrics(self, record):
            self.calls.append((record["kind"], record["step"]))

        def finish(self):
            self.calls.append(("finish",))

    first, second = Recorder(5), Recorder(None)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny_recipe(), tmp_path, progress=first)
    train_tiny(tiny_recipe(), tmp_path, progress=second)
    assert (first.calls[0], first.calls[-1]) == (("start", 0, 12), ("finish",))
    assert (second.calls[0], second.calls[-1]) == (("start", 4, 12), ("finish",))
    assert [call[1] for call in second.calls if call[0] == "advance"] == list(range(5, 13))
    assert ("validation", 10) in second.calls


def test_schedule_and_optimizer_are_what_a_plain_loop_does(tmp_path, tiny_recipe, train_tiny, tiny_model, corpus):
    """The run's weights against a loop written out with torch's plain pieces."""
    from zoo.data import Batches

    recipe = tiny_recipe(steps=4, warmup_steps=2, weight_decay=0.5, checkpoint_every=4)
    torch.manual_seed(7)
    model = tiny_model(dropout=0.0)
    plain = tiny_model(dropout=0.0)
    plain.load_state_dict(model.state_dict())
    train_tiny(recipe, tmp_path, model=model)

    decaying = [parameter for parameter in plain.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in plain.parameters() if parameter.ndim == 1]
    groups = [{"params": decaying, "weight_decay": 0.5}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=False)
    batches = Batches(corpus.train, 4, 8, recipe.training.seed)
    rates = [0.005, 0.01, 0.001 + 0.009 / 2, 0.001]
    for step, rate in zip(itertools.count(), rates, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batches.batch(step)
        logits = plain(batch.tokens, resets=batch.resets).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], parameter, rtol=1e-4, atol=1e-6)
