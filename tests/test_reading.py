"""Files that are no files: whatever is read by name refuses them at once, where it would wait or read for ever."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.config import load_yaml
from zoo.data import DataConfig
from zoo.data.documents import Documents
from zoo.errors import ZooError
from zoo.reading import open_regular, read_regular
from zoo.recipe import load_recipe, load_study
from zoo.training.run.metrics import read_metrics
from zoo.training.run.result import read_result

READERS: dict[str, Callable[[Path], object]] = {
    "yaml": load_yaml,
    "recipe": lambda path: load_recipe(str(path)),
    "study": lambda path: load_study(str(path)),
    "text": lambda path: Documents([path], DataConfig()),
    "metrics": read_metrics,
    "result": read_result,
}


@pytest.mark.parametrize("reader", READERS)
def test_pipes_devices_and_folders_are_refused(reader: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    endless = tmp_path / "endless.yaml"
    endless.symlink_to("/dev/zero")
    for path in (pipe, endless, folder):
        with pytest.raises((ZooError, OSError)) as caught:
            READERS[reader](path)
        assert "\n" not in str(caught.value)


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"content"
    with pytest.raises(OSError, match="Not a regular file"):
        open_regular("/dev/null")
