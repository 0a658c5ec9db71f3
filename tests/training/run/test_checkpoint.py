"""Checkpoints survive whatever stops them: an injected fault at every call that touches the disk, and damaged bytes."""

import contextlib
import errno
import logging
import math
import resource
import threading

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo.errors import CheckpointError, TrainingError
from zoo.report import files as files_module
from zoo.report.files import writing
from zoo.training.run import checkpoint as checkpoint_module
from zoo.training.run.checkpoint import CheckpointStore
from zoo.training.run.parts import begin_saving, wait_for


def tensors(step):
    return {"model": {"weight": torch.full((4, 3), float(step))}, "optimizer": {"weight.step": torch.tensor(step)}}


def facts(step):
    return {"seconds": step / 3, "recent_losses": [0.1, 1 / 3]}


def assert_whole(checkpoint, step):
    assert checkpoint.step == step
    assert checkpoint.facts == facts(step)
    assert torch.equal(checkpoint.tensors("model")["weight"], tensors(step)["model"]["weight"])
    assert checkpoint.tensors("optimizer")["weight.step"].item() == step


def save_whole(store, step, given=None):
    store.save(step, given or tensors(step), facts(step))


def save_in_parts(store, step, given=None):
    """As several processes do, of which there is one here."""
    folder = store.begin(step)
    with writing(store.place(step)):
        wait_for(
            begin_saving(
                given or tensors(step),
                folder,
                lambda files: store.complete(folder, step, files, facts(step)),
                dist.group.WORLD,
            )
        )


every_form = pytest.mark.parametrize("save", [save_whole, save_in_parts])
PART = "shard-00001-model-00001-of-00001.safetensors"


@pytest.fixture(scope="module", autouse=True)
def _group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run" / "checkpoints")


@every_form
def test_the_newest_two_are_kept(store, save):
    assert store.newest() is None
    for step in (5, 40, 100, 123456789):
        save(store, step)
        assert_whole(store.newest(), step)
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000100", "step-123456789"]
    files = ["model.safetensors", "optimizer.safetensors"] if save is save_whole else [PART]
    assert sorted(path.name for path in (store.folder / "step-00000100").iterdir()) == ["checkpoint.json", *files]


FAULTS = {"full disk": lambda: OSError(errno.ENOSPC, "No space left on device"), "Ctrl-C": KeyboardInterrupt}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    save=st.sampled_from([save_whole, save_in_parts]), kind=st.sampled_from(sorted(FAULTS)), at=st.integers(1, 60),
    after=st.booleans(), saved=st.integers(0, 3),
)  # fmt: skip
def test_a_fault_at_any_call_leaves_whole_checkpoints(save, kind, at, after, saved, tmp_path_factory, fault_at):
    store = CheckpointStore(tmp_path_factory.mktemp("faults") / "checkpoints")
    for step in range(1, saved + 1):
        save(store, step)
    new = saved + 1
    with pytest.MonkeyPatch.context() as monkeypatch:
        fault_at(monkeypatch, FAULTS[kind](), at, after)
        caught = None
        try:
            save(store, new)
        except (TrainingError, KeyboardInterrupt) as error:
            caught = error
    if isinstance(caught, TrainingError):
        assert str(caught) == f"{store.folder}/step-{new:08d}: cannot be written: No space left on device"

    for place in store.folder.glob("step-*"):  # whatever bears the name is whole
        assert_whole(checkpoint_module._open(place), int(place.name.removeprefix("step-")))
    newest = store.newest()
    assert newest is not None or saved == 0
    assert newest is None or newest.step in (saved, new)
    assert len(list(store.folder.glob("step-*"))) >= min(saved, 2)

    store.clean()
    assert not list(store.folder.glob(".*"))
    save(store, new)
    assert_whole(store.newest(), new)
    assert len(list(store.folder.iterdir())) == min(new, 2)


def test_a_file_that_cannot_grow_leaves_the_old_checkpoint(store):
    """The operating system itself refuses the write, part of the way into the file."""
    store.save(1, tensors(1), facts(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = {"model": {"weight": torch.zeros(2**16)}}
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, hard))
    try:
        with pytest.raises(TrainingError, match=r"step-00000002: cannot be written: .*File too large") as caught:
            store.save(2, large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]
    assert_whole(store.newest(), 1)


def damage(path, data):
    """Change a file in some way that a disk, a copy or a person might."""
    content = path.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "empty", "gone", "longer"]), label="damage")
    if kind == "flip":
        where = data.draw(st.integers(0, len(content) - 1), label="byte")
        flipped = content[where] ^ data.draw(st.integers(1, 255), label="bits")
        path.write_bytes(content[:where] + bytes([flipped]) + content[where + 1 :])
    elif kind == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), label="length")])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "gone":
        path.unlink()
    else:
        path.write_bytes(content + b"\0")


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_found_and_the_one_before_is_used(data, tmp_path_factory):
    store = CheckpointStore(tmp_path_factory.mktemp("damage") / "checkpoints")
    save = data.draw(st.sampled_from([save_whole, save_in_parts]), label="save")
    for step in (1, 2):
        save(store, step)
    file = data.draw(st.sampled_from(sorted(path.name for path in store.place(2).iterdir())), label="file")
    damage(store.folder / "step-00000002" / file, data)
    # A flipped blank between JSON's words may leave it saying the same.
    assert_whole(store.newest(), store.newest().step)
    with contextlib.suppress(CheckpointError):
        assert_whole(checkpoint_module._open(store.folder / "step-00000002"), 2)
        assert file == "checkpoint.json"


def test_a_damaged_checkpoint_is_passed_over_in_one_line(store, caplog):
    for step in (1, 2):
        store.save(step, tensors(step), facts(step))
    (store.folder / "step-00000002" / "model.safetensors").write_bytes(b"junk")
    with caplog.at_level(logging.WARNING):
        assert_whole(store.newest(), 1)
    assert caplog.messages == [
        f"{store.folder}/step-00000002/model.safetensors is damaged: its bytes are not those that were written; "
        "trying the one before"
    ]
    store.save(2, tensors(2), facts(2))  # training comes by again
    assert_whole(store.newest(), 2)
    assert len(list(store.folder.iterdir())) == 2


@every_form
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("group", ["model", "optimizer"])
def test_one_that_is_not_finite_is_passed_over_in_one_line(store, caplog, value, group, save):
    save(store, 1)
    unsound = tensors(2)
    unsound[group]["other"] = torch.tensor([0.0, value])
    save(store, 2, unsound)
    with caplog.at_level(logging.WARNING):
        assert_whole(store.newest(), 1)
    found = f"{group}.safetensors is not sound: other" if save is save_whole else f"{PART} is not sound: {group}/other"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings[0] == f"{store.folder}/step-00000002/{found} is not finite; trying the one before"


def test_training_goes_on_while_parts_are_written(store):
    go_on, folder, changing = threading.Event(), store.begin(2), tensors(2)

    def complete(files):
        go_on.wait(60)
        store.complete(folder, 2, files, facts(2))

    saving = begin_saving(changing, folder, complete, dist.group.WORLD)
    for group in changing.values():
        for tensor in group.values():
            tensor.zero_()
    assert not saving.done()
    assert store.newest() is None
    go_on.set()
    wait_for(saving)
    assert_whole(store.newest(), 2)


def test_later_ones_go_when_training_has_gone_back(store):
    for step in (1, 2):
        store.save(step, tensors(step), facts(step))
    (store.folder / "step-00000002" / "model.safetensors").write_bytes(b"junk")
    store.save(1, tensors(1), facts(1))
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]


def test_when_all_are_damaged_the_run_does_not_silently_start_anew(store):
    for step in (1, 2):
        store.save(step, tensors(step), facts(step))
        (store.folder / f"step-{step:08d}" / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000001/checkpoint.json is missing or damaged, and no older"):
        store.newest()


def test_another_format_is_refused_not_passed_over(store, monkeypatch):
    store.save(1, tensors(1), facts(1))
    monkeypatch.setattr(checkpoint_module, "_WHOLE", 7)
    store.save(2, tensors(2), facts(2))
    monkeypatch.setattr(checkpoint_module, "_WHOLE", 5)
    with pytest.raises(CheckpointError, match=r"step-00000002: has checkpoint format 7, this version reads up to 6"):
        store.newest()


@pytest.mark.parametrize("content", ["[]", '"text"', "{}", '{"sha256": []}', "null", "[" * 100_000])
def test_any_other_json_is_damage(store, content):
    store.save(1, tensors(1), facts(1))
    (store.folder / "step-00000001" / "checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError, match="missing or damaged"):
        store.newest()


def test_replace_file_leaves_the_old_content_or_the_new(tmp_path, fault_at):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"old")
    for at in range(1, 12):
        for after in (False, True):
            with pytest.MonkeyPatch.context() as monkeypatch:
                fault_at(monkeypatch, FAULTS["full disk"](), at, after)
                with contextlib.suppress(TrainingError):
                    files_module.replace_file(path, b"new")
            assert path.read_bytes() in (b"old", b"new")
            path.write_bytes(b"old")
    assert [found.name for found in tmp_path.iterdir()] == ["recipe.yaml"]
