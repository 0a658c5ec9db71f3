"""`zoo data prepare`, and a recipe that trains on what it wrote."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from zoo.data.bpe import BytePairTokenizer
from zoo.data.folder import read_manifest


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    texts = [f"document {index} says words and words\n" * 5 for index in range(40)]
    Path("text.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    BytePairTokenizer.train([text.encode() for text in texts], 280).save("tokenizer.json")
    return Path("text.jsonl")


def test_prepared_shards_serve_a_recipe(zoo: Callable[..., Result], recipe_file: Path, lines: Path) -> None:
    options = ("--column", "body", "--tokenizer", "tokenizer.json", "--validation-fraction", "0.2")
    result = zoo("data", "prepare", lines, "out", *options, "--processes", "1")
    assert result.exit_code == 0, result.output
    facts, command = result.stdout.splitlines()
    manifest = read_manifest(Path("out"))
    train, validation = manifest.tokens["train"], manifest.tokens["validation"]
    assert facts.startswith("out: ")
    assert facts.endswith(f"in 40 documents, of which 0 are copies; tokens: {train:,} train, {validation:,} validation")
    assert shlex.split(command)[:3] == ["zoo", "train", "RECIPE"]
    trained = zoo("train", recipe_file, *shlex.split(command)[3:], "--folder", "run")
    assert trained.exit_code == 0, trained.output
    assert "bits per byte" in trained.stdout
    assert zoo("generate", "run", "--prompt", "document ", "--max-new-tokens", "3").exit_code == 0


def test_lines_and_folders_are_documents_where_asked_for(zoo: Callable[..., Result], tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        (tmp_path / "text" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "text" / name).write_text(f"{name}\nmore of {name}\n")
    for by, count in (("file", 3), ("line", 6), ("folder", 2)):
        result = zoo("data", "prepare", tmp_path / "text", tmp_path / by, "--document-by", by)
        assert result.exit_code == 0, result.output
        assert read_manifest(tmp_path / by).documents == count


def test_short_documents_are_left_out_where_asked_for(zoo: Callable[..., Result], tmp_path: Path) -> None:
    for name, lines in (("a/b/1", 30), ("a/2", 30), ("c/1", 50), ("d/1", 9), ("d/2", 9)):
        (tmp_path / "text" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "text" / name).write_text("a line of ten\n" * lines)
    options = ("--document-by", "package", "--minimum-tokens", "600")
    result = zoo("data", "prepare", f"{tmp_path}/text/**/[12]", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1:3] == [
        "left out: 1 document of fewer than 600 tokens, 252 B",
        "of 5 files that were read 2 are copies of others",
    ]
    assert read_manifest(tmp_path / "out").documents == 2


def test_what_cannot_be_prepared_is_one_line(refused: Callable[..., str], lines: Path) -> None:
    message = refused("data", "prepare", lines, "out")
    assert message == "data.source: 'text.jsonl' line 1 has no key 'text' (data.column), but 'body'"
    Path("out").mkdir()
    assert refused("data", "prepare", lines, "out") == "out: out is there already; name a new folder"
    assert "neither 'bytes', 'none' nor a tokenizer.json" in refused(
        "data", "prepare", lines, "new", "--tokenizer", "nothing.json"
    )
    Path("shard.bin").write_bytes(b"\1\0" * 8)
    assert "expected text, but 'shard.bin' is token shards" in refused("data", "prepare", "shard.bin", "new")
    assert not Path("new").exists()
