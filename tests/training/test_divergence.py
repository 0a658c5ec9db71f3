"""Divergence: nothing that is not finite is kept, and a jump of the loss is told, left out, or ends the run."""

import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import TrainingError
from zoo.training import read_metrics
from zoo.training.losses import SpikeWatch

from .test_loop import Interruption, assert_same_run, untimed, weights

finite = st.floats(0, 20)


@pytest.fixture
def update_to(monkeypatch):
    """Let update number `at` from now on write a value into a weight or into the optimiser's state."""

    def install(at, value, part="weight"):
        step, calls = torch.optim.AdamW.step, []

        def faulty(optimizer, *arguments):
            calls.append(step(optimizer, *arguments))
            if len(calls) == at:
                parameter = optimizer.param_groups[0]["params"][0]
                (parameter.data if part == "weight" else optimizer.state[parameter][part]).view(-1)[0] = value

        monkeypatch.setattr(torch.optim.AdamW, "step", faulty)

    return install


@pytest.mark.parametrize("part", ["weight", "exp_avg", "exp_avg_sq"])
def test_no_checkpoint_is_saved_that_is_not_finite(tmp_path, tiny_recipe, train_tiny, update_to, monkeypatch, part):
    with monkeypatch.context():
        update_to(8, math.nan, part)
        with pytest.raises(TrainingError) as caught:
            train_tiny(tiny_recipe(), tmp_path / "run")
    monkeypatch.undo()
    name = "embedding.weight" if part == "weight" else f"embedding.weight.{part}"
    assert str(caught.value) == (
        f"step 8: {name} is not finite after it, on the 4 windows from number 28 of epoch 0 in the order of seed 1, "
        f"at learning rate 0.00471858; the last checkpoint is {tmp_path}/run/checkpoints/step-00000004"
    )
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    train_tiny(tiny_recipe(), tmp_path / "run")
    train_tiny(tiny_recipe(), tmp_path / "straight")
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_a_run_goes_back_to_the_last_finite_checkpoint(
    tmp_path, tiny_recipe, train_tiny, update_to, monkeypatch, caplog
):
    train_tiny(tiny_recipe(), tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr("zoo.training.loop.first_not_finite", lambda tensors: None)
        update_to(8, math.inf)
        with pytest.raises(TrainingError, match="step 9"):
            train_tiny(tiny_recipe(), tmp_path / "run")
    monkeypatch.undo()
    with caplog.at_level(logging.WARNING):
        train_tiny(tiny_recipe(), tmp_path / "run")
    assert "step-00000008/model.safetensors is not sound: embedding.weight is not finite; trying" in caplog.text
    assert_same_run(tmp_path / "run", tmp_path / "straight")


@given(before=st.lists(finite, min_size=32, max_size=32), more=st.lists(finite, max_size=8), step=st.floats(0.5, 30))
def test_a_spike_is_a_nat_and_six_deviations_above_the_mean(before, more, step):
    watch = SpikeWatch([*more, *before])
    mean = math.fsum(before) / 32
    deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in before) / 32)
    limit = mean + max(1, 6 * deviation)
    assert SpikeWatch(before[1:]).take(1e9) is None
    if abs(mean + step - limit) > 1e-6:
        assert (watch.take(mean + step) is not None) == (mean + step > limit)
        assert list(watch.recent)[-1] == mean + step


def test_a_lasting_rise_is_told_once():
    watch = SpikeWatch([2.0] * 32)
    assert [watch.take(loss) is not None for loss in (2.9, 9.0, 9.0, 9.0)] == [False, True, False, False]


class Spiking:
    """The model of another fixture, whose loss jumps at some call of its in training."""

    def __new__(cls, tiny_model, at):
        torch.manual_seed(3)

        class Model(tiny_model):
            calls = 0

            def forward(self, tokens, *, resets=None):
                output = super().forward(tokens, resets=resets)
                self.calls += self.training
                return output._replace(logits=output.logits * (200.0 if self.training and self.calls == at else 1.0))

        return Model()


@pytest.fixture
def long_recipe(tiny_recipe):
    return lambda **changes: tiny_recipe(**{"steps": 44, "log_every": 11, "checkpoint_every": 11, **changes})


LINE = "step 36: the loss jumped to "


def test_a_spike_is_told(tmp_path, long_recipe, train_tiny, tiny_model, caplog):
    with caplog.at_level(logging.WARNING):
        train_tiny(long_recipe(), tmp_path, model=Spiking(tiny_model, 36))
    (message,) = caplog.messages
    assert message.startswith(LINE)
    assert "on average, on the 4 windows from number 140 of epoch 0 in the order of seed 1, at learning rate" in message


def test_a_spike_ends_the_run(tmp_path, long_recipe, train_tiny, tiny_model):
    with pytest.raises(TrainingError, match=rf"{LINE}.*the last checkpoint is .*33; training\.spike=warn goes on"):
        train_tiny(long_recipe(spike="stop"), tmp_path, model=Spiking(tiny_model, 36))


def test_the_update_of_a_spike_is_left_out(tmp_path, long_recipe, train_tiny, tiny_model, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        train_tiny(long_recipe(spike="skip"), tmp_path / "run", model=Spiking(tiny_model, 36))
    assert caplog.messages[0].endswith("; its update is left out")
    assert len(caplog.messages) == 1
    counts = {name: int(value) for name, value in weights(tmp_path / "run", 44).items() if name.endswith(".step")}
    assert set(counts.values()) == {43}
    assert [record["step"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")][-1] == 44


@pytest.mark.parametrize("stop", [20, 35, 36, 40])
def test_what_is_a_spike_is_the_same_after_an_interruption(tmp_path, long_recipe, train_tiny, tiny_model, stop):
    recipe = long_recipe(spike="skip", checkpoint_every=5)
    train_tiny(recipe, tmp_path / "straight", model=Spiking(tiny_model, 36))
    with pytest.raises(KeyboardInterrupt):
        train_tiny(recipe, tmp_path / "run", model=Spiking(tiny_model, 36), progress=Interruption(stop))
    resumed = stop - stop % 5
    train_tiny(recipe, tmp_path / "run", model=Spiking(tiny_model, 36 - resumed))
    assert untimed(tmp_path / "run") == untimed(tmp_path / "straight")


def test_without_a_spike_skipping_changes_nothing(tmp_path, tiny_recipe, train_tiny):
    train_tiny(tiny_recipe(), tmp_path / "warn")
    train_tiny(tiny_recipe(spike="skip"), tmp_path / "skip")
    assert_same_run(tmp_path / "warn", tmp_path / "skip")
