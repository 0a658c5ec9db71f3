"""Compiled code in one file: nothing is compiled again where it is loaded, and what is not for here is refused."""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from zoo.caching import load_cache
from zoo.caching.kind import kind_of, processor
from zoo.errors import InputError
from zoo.reading import hash_of


class Saved(NamedTuple):
    path: Path
    told: dict[str, Any]


def child(folder: Path, *arguments: str | Path) -> dict[str, Any]:
    """Run the script beside this file, with its caches in a folder, and return what it prints."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_HOME": str(folder)}
    environment.pop("TRITON_CACHE_DIR", None)
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(Path(__file__).with_name("compiling.py")), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("saved")
    path = folder / "files" / "some.cache"
    path.parent.mkdir()
    return Saved(path, child(folder, "save", path))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The caches of this process, empty."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    return tmp_path


@pytest.fixture
def altered(saved: Saved, tmp_path: Path) -> Callable[..., Path]:
    """Write the file as if something else had been true where it was saved."""

    def write(**facts: str) -> Path:
        head, _, rest = saved.path.read_bytes().partition(b"\n")
        content = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(rest)) as old, zipfile.ZipFile(content, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                if name == "kind.json":
                    data = json.dumps(json.loads(data) | facts).encode()
                new.writestr(name, data)
        path = tmp_path / "altered.cache"
        path.write_bytes(head[: head.rindex(b" ")] + f" {hash_of(content.getvalue())}\n".encode() + content.getvalue())
        return path

    return write


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_compiled_again_where_a_file_was_loaded(saved: Saved, here: Path) -> None:
    found = load_cache(saved.path, trusted=True)
    assert found == (saved.told["entries"], 0, None)
    libraries = [path for path in files_in(here / "inductor") if path.suffix == ".so"]
    assert libraries
    before = {path: path.stat().st_mtime_ns for path in libraries}
    anew = child(here, "run")
    assert anew["graphs"]["fxgraph_cache_hit"] == 1
    assert "fxgraph_cache_miss" not in anew["graphs"]
    assert anew["kernels"] == [True]
    after = {path: path.stat().st_mtime_ns for path in files_in(here / "inductor") if path.suffix == ".so"}
    assert after == before


def test_what_is_there_already_is_counted_and_left(saved: Saved, here: Path) -> None:
    load_cache(saved.path, trusted=True)
    before = {path: path.stat().st_mtime_ns for path in files_in(here)}
    assert load_cache(saved.path, trusted=True) == (0, saved.told["entries"], None)
    assert {path: path.stat().st_mtime_ns for path in files_in(here)} == before


def test_kernels_go_where_triton_looks_before_and_after_the_compiler_says_where(saved: Saved, here: Path) -> None:
    load_cache(saved.path, trusted=True)
    for folder in (here / ".triton" / "cache", here / "inductor" / "triton" / "0"):
        (group,) = folder.rglob("__grp__*")
        places = json.loads(group.read_text())["child_paths"].values()
        assert places
        assert all(Path(place).parent == group.parent and Path(place).is_file() for place in places)


def test_kernels_go_where_the_environment_says(saved: Saved, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(here / "kernels"))
    load_cache(saved.path, trusted=True)
    assert list((here / "kernels").rglob("*.cubin"))
    assert not list((here / "inductor").rglob("*.cubin"))


def test_saving_writes_all_or_nothing(saved: Saved) -> None:
    refused, path = saved.told["refused"], saved.path
    assert len(path.read_bytes()) > 1000
    assert refused == {
        "failed": "this failed",
        "nothing": refused["nothing"],
        "again": refused["again"],
        "full": refused["full"],
    }
    assert refused["nothing"].endswith("nothing was compiled, so that there is nothing to save")
    assert refused["again"].endswith("expected a process that has compiled nothing before; start another")
    assert refused["full"].endswith("cannot be written: No space left on device")
    assert saved.told["kept"] == "what was there"
    assert saved.told["same"]
    assert saved.told["beside"] == [path.name]


def test_a_file_is_refused_without_a_word_of_trust(saved: Saved, here: Path) -> None:
    with pytest.raises(InputError, match=r"trusted: .*some\.cache holds programs, which can do what you can"):
        load_cache(saved.path)
    assert not files_in(here)


@pytest.mark.parametrize("damage", ["a bit", "the end", "the hash"])
def test_a_damaged_file_is_refused(saved: Saved, here: Path, tmp_path: Path, damage: str) -> None:
    content = bytearray(saved.path.read_bytes())
    if damage == "the end":
        del content[-1]
    else:
        content[len(content) // 2 if damage == "a bit" else content.index(b"\n") - 1] ^= 1
    path = tmp_path / "damaged.cache"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.cache: is damaged: its bytes are not those that were written"):
        load_cache(path, trusted=True)
    assert files_in(here) == {path}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a file that zoo cache save wrote"),
        (b"PK\x03\x04", "expected a file that zoo cache save wrote"),
        (b"zoo compile cache 9 00\n", "expected format 'zoo compile cache 1', was 'zoo compile cache 9 00'"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.cache"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_cache(path, trusted=True)


@pytest.mark.parametrize("name", [*kind_of("cpu"), "processor"])
def test_a_file_of_another_kind_is_refused_by_name(altered: Callable[..., Path], here: Path, name: str) -> None:
    mine = (kind_of("cpu") | processor())[name]
    path = altered(**{name: "another"})
    with pytest.raises(InputError) as refusal:
        load_cache(path, trusted=True)
    assert str(refusal.value) == f"{path}: {name}: expected {mine}, as it is here, was another; save it anew"
    assert files_in(here) == {path}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_file_of_a_gpu_is_refused_where_there_is_none(altered: Callable[..., Path], here: Path) -> None:
    path = altered(type="cuda", device="NVIDIA H200 (9.0, CUDA 13.0)")
    with pytest.raises(InputError, match=r"device: expected none, as it is here, was NVIDIA H200"):
        load_cache(path, trusted=True)


def test_libraries_that_will_not_be_found_are_told(altered: Callable[..., Path], here: Path) -> None:
    found = load_cache(altered(environment="/elsewhere"), trusted=True)
    assert found.new
    assert found.remark is not None
    assert "libraries of C++ are of use where Python's environment is /elsewhere" in found.remark


def test_no_name_leads_out_of_the_folders(here: Path, altered: Callable[..., Path]) -> None:
    path = altered()
    head, _, rest = path.read_bytes().partition(b"\n")
    content = io.BytesIO(rest)
    with zipfile.ZipFile(content, "a") as archive:
        for name in ("inductor/../../out.so", "triton/..", "/out.so", "inductor//out.so", "elsewhere/out.so"):
            archive.writestr(name, b"code")
    path.write_bytes(head[: head.rindex(b" ")] + f" {hash_of(content.getvalue())}\n".encode() + content.getvalue())
    load_cache(path, trusted=True)
    assert not list(here.parent.rglob("out.so"))
