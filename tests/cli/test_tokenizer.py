"""`zoo tokenizer train`, and a recipe that uses what it wrote."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from zoo.data import DataConfig, load_corpus, split_documents
from zoo.data.bpe import BytePairTokenizer


def test_a_trained_tokenizer_serves_a_recipe(
    zoo: Callable[..., Result], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ("tokenizer", "train", "text.txt", "--vocab-size", "280", "--validation-fraction", "0.2")
    result = zoo(*train, "--output", "made/for it.json")
    assert result.exit_code == 0, result.output
    path = tmp_path / "made" / "for it.json"
    facts, command = result.stdout.splitlines()
    tokenizer = BytePairTokenizer.load(path)
    corpus = load_corpus(DataConfig(source="text.txt", tokenizer=str(path), validation_fraction=0.2))
    held_back = corpus.validation[:]
    ratio = tokenizer.byte_lengths[held_back].sum() / (held_back != tokenizer.separator).sum()
    assert facts == f"made/for it.json: 280 tokens, {ratio:.2f} bytes each in the text held back"

    overrides = shlex.split(command)[3:]
    assert shlex.split(command)[:3] == ["zoo", "train", "RECIPE"]
    trained = zoo("train", recipe_file, *overrides, "--folder", "run")
    assert trained.exit_code == 0, trained.output
    assert zoo("generate", "run", "--prompt", "Line ", "--max-new-tokens", "3").stdout.startswith("Line ")


def test_held_back_text_is_not_learned_from(zoo: Callable[..., Result], tmp_path: Path) -> None:
    documents = [f"{letter}{letter.upper()} ".encode() * 50 for letter in "abcdefghijklmnopqrstuvwxyz"]
    for document in documents:
        (tmp_path / f"{document[:1].decode()}.txt").write_bytes(document)
    output = tmp_path / "tokenizer.json"
    result = zoo("tokenizer", "train", f"{tmp_path}/*.txt", "--output", output, "--validation-fraction", "0.3")
    assert result.exit_code == 0, result.output
    tokenizer = BytePairTokenizer.load(output)
    for side, merged in zip(split_documents(documents, 0.3), (True, False), strict=True):
        assert side
        assert all((len(tokenizer.encode(document[:2])) == 1) == merged for document in side)


def test_much_text_is_learned_from_in_part(zoo: Callable[..., Result], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"{letter}{letter.upper()} " * 50 for letter in "abcdefghijklmnopqrstuvwxyz"]
    Path("text.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    train = ("tokenizer", "train", "text.jsonl", "--column", "body", "--validation-fraction", "0.1", "--bytes", "900")
    result = zoo(*train)
    assert result.exit_code == 0, result.output
    tokenizer = BytePairTokenizer.load("tokenizer.json")
    learned = [len(tokenizer.encode(text[:2])) == 1 for text in texts]
    assert sum(learned) == 6  # of 150 bytes each
    assert any(learned[:9])  # spread over the text
    assert any(learned[9:18])
    assert any(learned[18:])
    assert "data.column=body" in result.stdout


def test_what_cannot_be_trained_on_is_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    train = ("tokenizer", "train")
    output = ("--output", tmp_path / "new" / "tokenizer.json")
    assert "no file or folder 'nothing.txt'" in refused(*train, "nothing.txt", *output)
    (tmp_path / "shard.bin").write_bytes(b"\1\0" * 8)
    assert "expected text, but" in refused(*train, tmp_path / "shard.bin", *output)
    assert not (tmp_path / "new").exists()
    there = tmp_path / "tokenizer.json"
    there.write_text("{}")
    message = f"--output: {there} is there already; name a new file"
    assert refused(*train, "stdlib", "--output", there) == message


def test_the_missing_library_is_named(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("zoo.data.learning", "zoo.data.bpe", "zoo.data.library"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "pip install 'mixer-zoo[hf]'" in refused("tokenizer", "train", "stdlib")
