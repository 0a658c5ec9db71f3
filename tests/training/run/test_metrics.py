"""Metrics: whole lines only, cut back to where training continues."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import TrainingError
from zoo.training.run.metrics import MetricsLog, read_metrics


def record(step):
    return {"kind": "train", "step": step, "loss": step / 3}


def write(path, steps, since=-1):
    log = MetricsLog(path, since)
    for step in steps:
        log.append(record(step))
    log.sync()
    log.close()


def test_lines_are_there_as_soon_as_they_are_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    log = MetricsLog(path, -1)
    for step in range(3):
        log.append(record(step))
        assert read_metrics(path)[-1] == record(step)
    log.close()
    log.close()


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), since=st.integers(-1, 12), junk=st.binary(max_size=20))
def test_resuming_keeps_the_whole_lines_up_to_the_checkpoint(tmp_path_factory, cut, since, junk):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    write(path, range(10))
    content = path.read_bytes()[:cut]
    path.write_bytes(content + junk)
    whole = content.count(b"\n")
    kept = [record(step) for step in range(min(whole, since + 1))]
    write(path, [100], since)
    found = read_metrics(path)
    assert found == [*kept, record(100)]
    assert path.read_bytes().count(b"\n") == len(found)


def test_a_line_nested_without_end_is_no_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [0])
    path.write_bytes(path.read_bytes() + b"[" * 200_000 + b"\n")
    assert read_metrics(path) == [record(0)]


def test_a_full_disk_is_one_line(tmp_path):
    class Full:
        def write(self, line):
            raise OSError(errno.ENOSPC, "No space left on device")

    log = MetricsLog(tmp_path / "metrics.jsonl", -1)
    log.close()
    log._file = Full()
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
        log.append(record(0))


def test_a_write_that_is_cut_short_is_continued(tmp_path):
    class Narrow:
        content = b""

        def write(self, line):
            self.content += bytes(line[:7])
            return min(7, len(line))

    log = MetricsLog(tmp_path / "metrics.jsonl", -1)
    log.close()
    log._file = Narrow()
    log.append(record(3))
    assert log._file.content == b'{"kind": "train", "step": 3, "loss": 1.0}\n'
