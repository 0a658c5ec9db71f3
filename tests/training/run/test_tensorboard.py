"""TensorBoard events: the metrics once more, also after interruptions, and only where they are asked for."""

import contextlib
import errno
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from zoo.builder import shrink
from zoo.errors import ConfigError, TrainingError
from zoo.recipe import load_recipe
from zoo.study import load_study, run_study
from zoo.training import read_metrics, train
from zoo.training.objective import HALVES
from zoo.training.run.metrics import EventLog

from ..stopping import StopAt

METRICS = {
    "train": ["loss", "learning_rate", "gradient_norm", "tokens_per_second"],
    "validation": ["loss", "bits_per_byte", *HALVES],
}


@pytest.fixture(autouse=True)
def _event_files_in_order(monkeypatch):
    """Files are read by name, and those of one second and process are told apart by a number without leading zeros."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def events(folder):
    accumulator = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


@pytest.mark.parametrize("interruptions", [[], [3], [7], [5, 11], [2, 4, 10]])
def test_events_are_the_metrics(tmp_path, tiny_recipe, train_tiny, interruptions):
    recipe = tiny_recipe(tensorboard=True)
    for step in interruptions:
        with contextlib.suppress(KeyboardInterrupt):
            train_tiny(recipe, tmp_path, progress=StopAt(step))
    train_tiny(recipe, tmp_path)
    assert len(list((tmp_path / "tensorboard").iterdir())) == len(interruptions) + 1
    found = events(tmp_path)
    assert found.keys() == {f"{kind}/{name}" for kind, names in METRICS.items() for name in names}
    records = read_metrics(tmp_path / "metrics.jsonl")
    for kind, names in METRICS.items():
        lines = [record for record in records if record["kind"] == kind]
        for name in names:
            steps, values = zip(*found[f"{kind}/{name}"], strict=True)
            assert list(steps) == [record["step"] for record in lines]
            assert list(values) == pytest.approx([record[name] for record in lines], rel=1e-6)


def test_events_are_there_as_soon_as_they_are_appended(tmp_path):
    log = EventLog(tmp_path / "tensorboard", -1)
    log.append({"kind": "train", "step": 3, "tokens": 12, "loss": 0.5})
    assert events(tmp_path) == {"train/loss": [(3, 0.5)]}
    log.close()
    log.close()


def test_without_being_asked_for_nothing_is_written_or_imported(tmp_path, tiny_recipe, train_tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train_tiny(tiny_recipe(), tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_the_missing_package_is_named_before_anything_is_written(tmp_path, corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    message = r"^training\.tensorboard needs .*: pip install 'mixer-zoo\[tensorboard\]'$"
    override = "training.tensorboard=true"
    with pytest.raises(ConfigError, match=message):
        train(shrink(load_recipe("tiny")).override([override]), tmp_path / "run", corpus=corpus)
    with pytest.raises(ConfigError, match=message):
        run_study(load_study("tiny", overrides=[override]), tmp_path / "study", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def refuse(_event):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = EventLog(tmp_path / "tensorboard", -1)
    monkeypatch.setattr(log._writer.file_writer.event_writer, "add_event", refuse)
    with pytest.raises(TrainingError, match="tensorboard: cannot be written: No space left on device"):
        log.append({"kind": "train", "step": 3, "loss": 0.5})
    log.close()
