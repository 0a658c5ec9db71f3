"""Text to token shards in a folder: what a corpus is of the text itself, whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest

from zoo.data import Batches, DataConfig, encoding, folder, load_corpus, validation_batches
from zoo.data.bpe import BytePairTokenizer
from zoo.data.folder import read_manifest
from zoo.data.prepare import prepare_shards
from zoo.errors import ConfigError, CorpusError, InputError, InUseError
from zoo.reading import hash_file
from zoo.report.files import locked

from .forked import exit_status, kill_self, memory_taken

TEXT = "some words of a text that is about nothing much, and some more words\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Documents of which some are copies, and a tokenizer of them."""
    (tmp_path / "text").mkdir()
    for index in range(60):
        (tmp_path / "text" / f"{index:02d}.txt").write_text(f"{index % 50} {TEXT}" * 9)
    BytePairTokenizer.train([TEXT.encode()], 300).save(tmp_path / "tokenizer.json")
    return tmp_path / "text"


@pytest.mark.parametrize("tokenizer", ["bytes", "tokenizer.json"])
def test_shards_are_the_corpus_of_the_text(text, tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoding, "_BATCH", 1000)
    config = DataConfig(source="text", tokenizer=tokenizer, validation_fraction=0.2)
    manifest = prepare_shards(config, tmp_path / "made" / "out", processes=1, shard_tokens=1000)
    direct = load_corpus(config)
    prepared = load_corpus(config.replace(source="made/out"))
    for side in ("train", "validation"):
        assert getattr(direct, side)[:].tolist() == getattr(prepared, side)[:].tolist()
        assert manifest.tokens[side] == len(getattr(direct, side))
    assert (manifest.corpus, manifest.copies, manifest.documents) == (direct.hash, direct.copies, 60)
    assert direct.copies == 10
    assert read_manifest(tmp_path / "made" / "out").tokens == manifest.tokens
    # The manifest says what was read and written.
    names = sorted(path.name for path in (tmp_path / "made" / "out").iterdir())
    shards = [shard["name"] for shard in manifest.shards]
    assert len(shards) > 4
    assert names == sorted([*shards, "manifest.json", *([] if tokenizer == "bytes" else ["tokenizer.json"])])
    first = manifest.inputs[0]
    assert first["name"] == "text/00.txt"
    assert first["sha256"] == hash_file(text / "00.txt")
    assert sum(shard["text_bytes"] for shard in manifest.shards) == manifest.text_bytes
    assert sum(shard["documents"] for shard in manifest.shards) == 60
    if tokenizer != "bytes":
        with pytest.raises(CorpusError, match="is of another tokenizer than 'bytes'"):
            load_corpus(DataConfig(source="made/out"))


def test_what_was_not_finished_is_made_anew(text, tmp_path, monkeypatch):
    config = DataConfig(source=str(text))
    out = tmp_path / "out"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(CorpusError, match="out: cannot be written: No space left on device"):
            prepare_shards(config, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text", "tokenizer.json"]
    partial = tmp_path / "out.partial"  # of a process that was killed
    partial.mkdir()
    (partial / "train-00000.bin").write_bytes(b"x")
    (partial / f".{'a' * 16}.partial").write_bytes(b"x")
    with locked(partial, "is writing"), pytest.raises(InUseError, match="another process is writing here"):
        prepare_shards(config, out)
    prepare_shards(config, out)
    assert not partial.exists()
    names = sorted(path.name for path in out.iterdir())
    assert names == ["manifest.json", "train-00000.bin", "validation-00000.bin"]
    with pytest.raises(InputError, match="out is there already; name a new folder"):
        prepare_shards(config, out)


def test_files_of_others_stay(text, tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("mine")
    with pytest.raises(CorpusError, match="holds files that no unfinished preparation left; name another folder"):
        prepare_shards(DataConfig(source=str(text)), tmp_path / "out")
    assert (partial / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_a_killed_process_leaves_nothing_that_loads(text, tmp_path, monkeypatch):
    config = DataConfig(source=str(text))
    with monkeypatch.context() as patch:
        patch.setattr(folder, "replace_file", kill_self)
        assert exit_status(lambda: prepare_shards(config, tmp_path / "out")) == -9
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").is_dir()
    prepare_shards(config, tmp_path / "out")
    assert load_corpus(DataConfig(source=str(tmp_path / "out"))).vocab_size == 257


def test_nothing_is_made_of_what_cannot_be_read(tmp_path):
    with pytest.raises(CorpusError, match="no file or folder 'missing'"):
        prepare_shards(DataConfig(source="missing"), tmp_path / "out")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n[]\n')
    with pytest.raises(CorpusError, match="line 2 is no JSON object"):
        prepare_shards(DataConfig(source=str(tmp_path / "a.jsonl")), tmp_path / "out")
    with pytest.raises(ConfigError, match="'none' makes no tokens of text"):
        prepare_shards(DataConfig(source=str(tmp_path), tokenizer="none", vocab_size=9), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_damaged_manifest_is_refused(text, tmp_path):
    prepare_shards(DataConfig(source=str(text)), tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"documents": 61}))
    with pytest.raises(CorpusError, match=r"manifest.json: is damaged or of another version"):
        read_manifest(tmp_path / "out")


def test_a_manifest_names_no_file_elsewhere(text, tmp_path):
    prepare_shards(DataConfig(source=str(text)), tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    fields = json.loads(path.read_text())
    fields["shards"][0]["name"] = "../tokenizer.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(CorpusError, match="mixes token shards"):
        load_corpus(DataConfig(source=str(tmp_path / "out")))


def test_training_on_shards_takes_less_memory_than_they_do(tmp_path):
    sizes = {"little": 2**16, "much": 2**26}
    for name, count in sizes.items():
        np.random.default_rng(0).integers(0, 50_000, count, dtype=np.uint16).tofile(tmp_path / f"{name}.bin")

    def train(name: str) -> None:
        config = DataConfig(source=str(tmp_path / f"{name}.bin"), tokenizer="none", vocab_size=50_000)
        corpus = load_corpus(config)
        batches = Batches(corpus.train, 2, 256, 0)
        for step in range(20):
            batches.batch(step)
        validation_batches(corpus.validation, 2, 256, 2**13)

    assert memory_taken(lambda: train("little"), lambda: train("much")) < 0.7 * 2 * sizes["much"]
