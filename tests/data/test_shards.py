import os
import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import DataConfig, TokenStream, load_corpus, write_shard
from zoo.data.shards import open_shard, split_shards
from zoo.errors import CorpusError, InputError

raw = {"tokenizer": "none", "vocab_size": 100, "document_token": 99}


@given(st.lists(st.lists(st.integers(0, 65535), min_size=1, max_size=20), min_size=1, max_size=4))
def test_shards_round_trip_through_memory_maps(shards):
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{index}.bin") for index in range(len(shards))]
        for path, shard in zip(paths, shards, strict=True):
            write_shard(path, shard)
            assert path.read_bytes() == b"".join(token.to_bytes(2, "little") for token in shard)
        opened = [open_shard(path) for path in paths]
        assert all(isinstance(shard, np.memmap) for shard in opened)
        assert TokenStream(opened)[:].tolist() == [*chain(*shards)]
        assert len(os.listdir(folder)) == len(shards)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=200), st.floats(0.01, 0.5))
def test_the_tail_is_held_back_from_a_document_start(tokens, fraction):
    separator = 0
    training, validation = split_shards([Path("a.bin")], [np.array(tokens, np.uint16)], fraction, separator)
    assert training[:].tolist() + validation[:].tolist() == tokens
    wanted = max(1, round(fraction * len(tokens)))
    assert len(training) > 0
    assert wanted / 2 <= len(validation) <= 2 * wanted
    allowed = tokens[max(1, len(tokens) - 2 * wanted) : len(tokens) - wanted // 2]
    if separator in allowed:
        assert validation[:1] == separator
    else:
        assert len(validation) == wanted


@pytest.mark.parametrize(
    ("starts", "held_back"),
    [([85], 15), ([75], 25), ([75, 85], 15), ([95], 20), ([50], 20), ([0], 20), ([], 20)],
)
def test_only_a_document_start_near_the_fraction_moves_the_cut(starts, held_back):
    tokens = np.ones(100, np.uint16)
    tokens[starts] = 0
    _, validation = split_shards([Path("a.bin")], [tokens], 0.2, 0)
    assert len(validation) == held_back


def test_shards_named_validation_are_held_back(tmp_path):
    write_shard(tmp_path / "train_0.bin", [99, 1, 2])
    write_shard(tmp_path / "train_1.bin", [3, 99, 4])
    write_shard(tmp_path / "shard_val_0.bin", [99, 5])
    for source in (tmp_path, tmp_path / "*.bin"):
        corpus = load_corpus(DataConfig(source=str(source), **raw))
        assert corpus.train[:].tolist() == [99, 1, 2, 3, 99, 4]
        assert corpus.validation[:].tolist() == [99, 5]
        assert (corpus.vocab_size, corpus.train.separator) == (100, 99)


def test_interval_is_not_a_validation_name(tmp_path):
    write_shard(tmp_path / "interval.bin", range(50))
    write_shard(tmp_path / "other.bin", range(50))
    corpus = load_corpus(DataConfig(source=str(tmp_path), validation_fraction=0.1, **raw))
    assert len(corpus.validation) == 10


def test_the_hash_is_of_the_tokens_not_of_the_files(tmp_path):
    for folder, shards in {"one": [range(20)], "two": [range(7), range(7, 20)], "other": [range(1, 21)]}.items():
        (tmp_path / folder).mkdir()
        for index, shard in enumerate(shards):
            write_shard(tmp_path / folder / f"{index}.bin", shard)
    hashes = {
        folder: load_corpus(DataConfig(source=str(tmp_path / folder), **raw)).hash for folder in os.listdir(tmp_path)
    }
    assert hashes["one"] == hashes["two"] != hashes["other"]


def test_shards_of_bytes_need_no_vocabulary(tmp_path):
    write_shard(tmp_path / "a.bin", [256, *b"hello", 256, *b"world"])
    corpus = load_corpus(DataConfig(source=str(tmp_path / "a.bin"), validation_fraction=0.5))
    assert corpus.vocab_size == 257
    assert corpus.tokenizer.decode(corpus.validation[:]) == "world"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the shard .* is empty"),
        (b"abc", "has 3 bytes, an odd number"),
        (b"\x01\x00", "1 tokens are too few"),
        (b"\x01\x00\x64\x00\x02\x00", "token 1 has id 100, not below the vocabulary of 100"),
    ],
)
def test_damaged_shards_are_refused(tmp_path, content, message):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        load_corpus(DataConfig(source=str(tmp_path / "a.bin"), **raw))


def test_ids_behind_known_headers_are_read(tmp_path):
    ids = np.arange(50, dtype=np.uint16)
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(ids)
    (tmp_path / "llm.bin").write_bytes(header.tobytes() + ids.tobytes())
    with (tmp_path / "numpy.bin").open("wb") as file:
        np.save(file, ids)
    for name in ("llm.bin", "numpy.bin"):
        assert open_shard(tmp_path / name).tolist() == ids.tolist()


@pytest.mark.parametrize("dtype", ["<u4", "<i8"])
@pytest.mark.parametrize("largest", [60, 50_257, 128_256])
def test_wider_ids_are_refused_with_and_without_a_header(tmp_path, dtype, largest):
    ids = np.random.default_rng(0).integers(0, largest, 400).astype(dtype)
    header = np.zeros(256, "<i4")
    header[0] = 20240801
    (tmp_path / "bare.bin").write_bytes(ids.tobytes())
    (tmp_path / "llm.bin").write_bytes(header.tobytes() + ids.tobytes())
    with (tmp_path / "numpy.bin").open("wb") as file:
        np.save(file, ids)
    for name, message in (("bare", "looks like ids of 4 or 8"), ("llm", "uint32 ids"), ("numpy", "int")):
        with pytest.raises(CorpusError, match=f"{message}.*expected uint16"):
            open_shard(tmp_path / f"{name}.bin")


@pytest.mark.parametrize(
    ("name", "tokens", "message"),
    [
        ("a.bin", [65536], "expected ids from 0 to 65535, got 65536"),
        ("a.bin", [], "expected at least one"),
        ("a.bin", [1.0], "expected integers"),
        ("a.txt", [1], "ends in .bin"),
    ],
)
def test_write_shard_refuses_what_is_no_shard(tmp_path, name, tokens, message):
    with pytest.raises(InputError, match=message):
        write_shard(tmp_path / name, tokens)
    assert not os.listdir(tmp_path)


def test_a_failed_write_leaves_the_old_shard(tmp_path, monkeypatch):
    write_shard(tmp_path / "a.bin", [1, 2])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CorpusError, match="cannot be written: No space left on device"):
        write_shard(tmp_path / "a.bin", [3, 4])
    assert open_shard(tmp_path / "a.bin").tolist() == [1, 2]
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(CorpusError, match="cannot be written: No such file or directory"):
        write_shard(tmp_path / "missing" / "a.bin", [1])
