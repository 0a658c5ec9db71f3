"""A run's files damaged, altered or gone: the run comes out as it was, or one line says what to do."""

import errno
import json
import os
import re
import shutil
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo.errors import CheckpointError
from zoo.training import load_result, read_metrics
from zoo.training.run.metrics import MetricsLog

from ..stopping import StopAt

REMEDY = "put the file back from a copy, or delete "


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(folders, tiny_recipe, train_tiny):
    """A run that is finished, and one that was stopped after step 10, with a checkpoint of step 8."""
    if not (folders / "finished").exists():
        train_tiny(tiny_recipe(), folders / "finished")
        with pytest.raises(KeyboardInterrupt):
            train_tiny(tiny_recipe(), folders / "stopped", progress=StopAt(10))
    return folders


def untimed(folder):
    records = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in ("seconds", "tokens_per_second")}
            for record in records]  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_before_the_checkpoint_is_an_error_and_after_it_is_dropped(
    data, runs, tmp_path_factory, tiny_recipe, train_tiny
):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(runs / "stopped", folder)
    path = folder / "metrics.jsonl"
    content = path.read_bytes()
    known = sum(len(line) for line, record in zip(content.splitlines(True), read_metrics(path), strict=True)
                if record["step"] <= 8)  # fmt: skip
    where = data.draw(st.integers(0, len(content) - 1), label="byte")
    kind = data.draw(st.sampled_from(["flip", "cut", "renamed key", "gone"]), label="damage")
    if kind == "flip":
        flipped = content[where] ^ data.draw(st.integers(1, 255), label="bits")
        path.write_bytes(content[:where] + bytes([flipped]) + content[where + 1 :])
    elif kind == "cut":
        path.write_bytes(content[:where])
    elif kind == "renamed key":
        where = content.index(b"tokens_per_second")
        path.write_bytes(content.replace(b"tokens_per_second", b"speed"))
    else:
        where = 0
        path.unlink()
    if where >= known:
        train_tiny(tiny_recipe(), folder)
        assert untimed(folder) == untimed(runs / "finished")
    else:
        what = "are gone" if kind == "gone" else "are not those that were written"
        with pytest.raises(CheckpointError, match=rf"metrics\.jsonl: the lines up to step 8 {what}; {REMEDY}"):
            train_tiny(tiny_recipe(), folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_finished_run_that_was_altered_says_so(data, runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("altered") / "run"
    shutil.copytree(runs / "finished", folder)
    path = folder / data.draw(st.sampled_from(["metrics.jsonl", "result.json"]), label="file")
    content = path.read_bytes()
    where = data.draw(st.integers(0, len(content) - 1), label="byte")
    flipped = content[where] ^ data.draw(st.integers(1, 255), label="bits")
    damages = [content[:where], content[:where] + bytes([flipped]) + content[where + 1 :], content + content]
    path.write_bytes(data.draw(st.sampled_from(damages), label="content"))
    before = load_result(runs / "finished")
    try:
        found = load_result(folder)
    except CheckpointError as error:
        told = str(error)
    else:
        assert found == replace(before, folder=folder)
        assert path.name == "result.json"  # blanks between JSON's words
        told = ""
    assert re.fullmatch(rf".*({REMEDY}|delete it and train again).*|", told)


def test_metrics_that_are_gone_are_told(runs, tmp_path):
    shutil.copytree(runs / "finished", tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=rf"metrics\.jsonl: the lines of a finished run are gone; {REMEDY}"):
        load_result(tmp_path / "run")


def test_a_hole_is_told_to_readers_and_an_end_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, -1)
    for step in range(15):
        log.append({"kind": "train", "step": step, "loss": 1.0})
    log.close()
    whole = path.read_bytes()
    for junk in (b"\0" * 40, b"\xff\n\n", b'{"kind": "train", "step": 15', b"{}\n{}\n"):
        path.write_bytes(whole + junk)
        assert len(read_metrics(path)) == 15
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:6], lines[6].replace(b"{", b"("), *lines[7:]]))
    with pytest.raises(
        CheckpointError, match=rf"metrics\.jsonl, line 7: is damaged, and lines after it are not; {REMEDY}"
    ):
        read_metrics(path)


def test_a_result_of_an_earlier_version_is_read(runs, tmp_path):
    shutil.copytree(runs / "finished", tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    fields = json.loads(path.read_text())
    del fields["sha256"], fields["metrics"]
    path.write_text(json.dumps(fields))
    assert load_result(tmp_path / "run").steps == 12


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_unreadable(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "listdir", refuse)  # tests may run as root, to whom all is readable


def replace_by_file(folder, monkeypatch):
    folder.rename(folder.parent.parent / "elsewhere")
    folder.write_text("")


LOST = {
    "moved": lambda folder, _: folder.rename(folder.parent.parent / "elsewhere"),
    "deleted": lambda folder, _: shutil.rmtree(folder),
    "emptied": lambda folder, _: [shutil.rmtree(place) for place in folder.iterdir()],
    "a link to nowhere": lambda folder, _: (folder.rename(folder.parent.parent / "elsewhere"), folder.symlink_to("no")),
    "a file": replace_by_file,
    "unreadable": make_unreadable,
}


@pytest.mark.parametrize("name", ["stopped", "finished"])
@pytest.mark.parametrize("how", LOST)
def test_a_run_whose_checkpoints_are_gone_does_not_start_anew(
    how, name, runs, tmp_path, tiny_recipe, train_tiny, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(runs / name, folder)
    (folder / "result.json").unlink(missing_ok=True)
    LOST[how](folder / "checkpoints", monkeypatch)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoints: (they are gone; put them back|cannot be read: )"):
        train_tiny(tiny_recipe(), folder)
    assert contents(tmp_path) == before


def test_a_run_that_never_had_a_checkpoint_starts_anew(runs, tmp_path, tiny_recipe, train_tiny):
    for step in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            train_tiny(tiny_recipe(), tmp_path, progress=StopAt(step))
    train_tiny(tiny_recipe(), tmp_path)
    assert untimed(tmp_path) == untimed(runs / "finished")
