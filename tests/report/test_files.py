"""Files are replaced whole; links are kept, and devices, pipes and standard output are written into."""

import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zoo.errors import CorpusError, InputError, TrainingError
from zoo.report import files
from zoo.report.files import check_outputs, is_standard_output, opened, replace_file


def test_a_file_is_replaced_and_has_the_usual_permissions(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    replace_file(path, b"old")
    replace_file(path, memoryview(b"new"))
    other.touch()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "other"]


def test_a_link_is_kept_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link, chain = tmp_path / "folder/target", tmp_path / "link", tmp_path / "chain"
    link.symlink_to("folder/target")
    chain.symlink_to(link)
    for content in (b"made", b"replaced"):
        replace_file(chain, content)
        assert target.read_bytes() == content
    assert link.is_symlink()
    assert chain.is_symlink()
    assert [found.name for found in (tmp_path / "folder").iterdir()] == ["target"]


def test_nobody_foresees_or_slips_in_the_file_that_is_written_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, opened_as = tmp_path / "victim", []
    victim.write_bytes(b"precious")
    really_open = os.open

    def watch(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT:
            opened_as.append((Path(path).name, flags))
        return really_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", watch)
    for _ in range(2):
        replace_file(tmp_path / "file", b"new")
    (one, flags), (other, _) = opened_as
    assert one != other
    assert flags & os.O_EXCL
    assert flags & os.O_NOFOLLOW
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / ".guessed.partial").symlink_to(victim)
    with pytest.raises(TrainingError, match="file: cannot be written: File exists"):
        replace_file(tmp_path / "file", b"newer")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    path, found = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    replace_file(path, b"content")
    reader.join()
    assert found == [b"content"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_device_is_written_into(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to(os.devnull)
    for path in (Path(os.devnull), link):
        replace_file(path, b"content")
        with opened(path) as file:
            file.write("content")
        assert stat.S_ISCHR(path.stat().st_mode)
    assert link.is_symlink()


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
@pytest.mark.parametrize("piped", [True, False])
def test_standard_output_is_written_into_in_order(name: str, piped: bool, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from zoo.report.files import *; path = Path(sys.argv[1])\n"
        "print('before'); replace_file(path, b'bytes\\n')\n"
        "file = opened(path); print('text', file=file, flush=True)\n"
        "print('after')"
    )
    kept = tmp_path / "kept"
    with kept.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", program, name], check=True, stdout=subprocess.PIPE if piped else file
        )
    assert (done.stdout if piped else kept.read_bytes()) == b"before\nbytes\ntext\nafter\n"
    assert [found.name for found in tmp_path.iterdir()] == ["kept"]


def test_standard_output_that_is_closed_is_nobodys_file(tmp_path: Path) -> None:
    program = "import os, sys; from pathlib import Path; os.close(1); from zoo.report.files import *; " + (
        "replace_file(Path(sys.argv[1]), b'new')"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "file"], check=True)
    assert (tmp_path / "file").read_bytes() == b"new"


def test_only_standard_output_is_called_so(tmp_path: Path) -> None:
    assert is_standard_output(Path("-"))
    assert not is_standard_output(tmp_path / "-")
    assert not is_standard_output(tmp_path / "missing")


@pytest.mark.parametrize("error", [TrainingError, CorpusError])
def test_what_cannot_be_written_is_one_line_of_the_callers_kind(error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (("missing/file", "No such file"), (".", "Is a directory"), ("loop", "Too many levels")):
        with pytest.raises(error, match=rf"^{tmp_path / name}: cannot be written: {reason}[^\n]*$"):
            replace_file(tmp_path / name, b"", error)


def test_rows_are_there_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("what was there before")
    with opened(path) as file:
        file.write("one\n")
        file.flush()
        assert path.read_text() == "one\n"


def test_outputs_are_checked_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_outputs(csv=tmp_path / "a.csv", json=None, plot=tmp_path / "a.svg")
    check_outputs(csv=Path("-"), json=Path(os.devnull), plot=None)
    check_outputs(plot=Path("-"))
    for outputs, message in (
        ({"csv": tmp_path}, "csv: expected a file in a folder that exists, was "),
        ({"json": tmp_path / "no/a"}, "json: expected a file in a folder that exists, was"),
        (
            {"plot": tmp_path / "a.gif"},
            "plot: expected a file name that ends in .png or .svg, was 'a.gif'",
        ),
        ({"csv": Path("-"), "json": Path("-")}, "csv, json: expected at most one of them on standard output"),
    ):
        with pytest.raises(InputError, match=message):
            check_outputs(**outputs)
    monkeypatch.setattr(files, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="plot: needs matplotlib, which is not installed"):
        check_outputs(plot=tmp_path / "a.png")


def test_a_standard_output_of_text_alone_takes_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    opened(Path("-")).write("a,b\n")
    assert text.getvalue() == "a,b\n"
