import os
import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import ByteTokenizer, DataConfig, RawTokens, TokenStream, load_corpus, write_shard
from zoo.data.bpe import BytePairTokenizer
from zoo.data.shards import Shard, open_shard, split_shards
from zoo.errors import CorpusError, InputError

raw = {"tokenizer": "none", "vocab_size": 100, "document_token": 99}


@given(st.lists(st.lists(st.integers(0, 65535), min_size=1, max_size=20), min_size=1, max_size=4))
def test_shards_round_trip_through_memory_maps(shards):
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{index}.bin") for index in range(len(shards))]
        for path, shard in zip(paths, shards, strict=True):
            write_shard(path, shard)
            assert path.read_bytes() == b"".join(token.to_bytes(2, "little") for token in shard)
        opened = [open_shard(path).tokens for path in paths]
        assert all(isinstance(shard, np.memmap) for shard in opened)
        assert TokenStream(opened)[:].tolist() == [*chain(*shards)]
        assert len(os.listdir(folder)) == len(shards)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=200), st.floats(0.01, 0.5))
def test_the_tail_is_held_back_from_a_document_start(tokens, fraction):
    separator = 0
    training, validation = split_shards([Shard(Path("a.bin"), np.array(tokens, np.uint16))], fraction, separator)
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
    _, validation = split_shards([Shard(Path("a.bin"), tokens)], 0.2, 0)
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
        assert open_shard(tmp_path / name).tokens.tolist() == ids.tolist()


@pytest.mark.parametrize("largest", [60, 50_257, 128_256])
def test_wider_ids_are_refused_with_and_without_a_header(tmp_path, largest):
    ids = np.random.default_rng(0).integers(0, largest, 400)
    with (tmp_path / "numpy.bin").open("wb") as file:
        np.save(file, ids)
    (tmp_path / "bare8.bin").write_bytes(ids.astype("<i8").tobytes())
    (tmp_path / "bare4.bin").write_bytes(ids.astype("<u4").tobytes())
    for name, message in (
        ("bare4", "looks like ids of 4 or 8 bytes, expected uint16"),
        ("bare8", "looks like ids of 4 or 8 bytes, expected uint16"),
        ("numpy", "int64 .*expected uint16 or uint32"),
    ):
        with pytest.raises(CorpusError, match=message):
            open_shard(tmp_path / f"{name}.bin")
    with pytest.raises(CorpusError, match="looks like ids of 8 bytes, expected uint32"):
        open_shard(tmp_path / "bare8.bin", vocab_size=128_256)


def test_ids_over_65535_are_read_with_and_without_a_header(tmp_path):
    ids = np.random.default_rng(0).integers(0, 128_256, 401).astype("<u4")
    ids[7] = 128_255
    header = np.zeros(256, "<i4")
    header[0] = 20240801
    (tmp_path / "bare.bin").write_bytes(ids.tobytes())
    (tmp_path / "llm.bin").write_bytes(header.tobytes() + ids.tobytes())
    with (tmp_path / "numpy.bin").open("wb") as file:
        np.save(file, ids)
    write_shard(tmp_path / "own.bin", ids, RawTokens(128_256, 128_000))
    hashes = set()
    for name in ("bare", "llm", "numpy", "own"):
        config = DataConfig(
            source=str(tmp_path / f"{name}.bin"), tokenizer="none", vocab_size=128_256, document_token=128_000
        )
        corpus = load_corpus(config)
        assert np.concatenate([corpus.train[:], corpus.validation[:]]).tolist() == ids.tolist()
        hashes.add(corpus.hash)
    assert len(hashes) == 1
    with pytest.raises(CorpusError, match="token 7 has id 128255, not below the vocabulary of 128000"):
        load_corpus(DataConfig(source=str(tmp_path / "own.bin"), tokenizer="none", vocab_size=128_000))


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
    assert open_shard(tmp_path / "a.bin").tokens.tolist() == [1, 2]
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(CorpusError, match="cannot be written: No such file or directory"):
        write_shard(tmp_path / "missing" / "a.bin", [1])


@given(st.lists(st.integers(0, 255) | st.just(256), min_size=1, max_size=50))
def test_a_shard_of_our_own_tells_what_it_holds(tokens):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.bin")
        write_shard(path, tokens, ByteTokenizer())
        shard = open_shard(path)
        assert shard.tokens.tolist() == tokens
        header = shard.header
        assert header is not None
        assert (header.tokens, header.documents, header.vocab_size) == (len(tokens), tokens.count(256), 257)
        assert (header.separator, header.tokenizer.hex()) == (256, ByteTokenizer.hash)
        assert header.text_bytes == sum(token != 256 for token in tokens)
        content = path.read_bytes()
        assert content[256:] == b"".join(token.to_bytes(2, "little") for token in tokens)
        assert os.listdir(folder) == ["a.bin"]


@given(st.integers(0, 255), st.integers(1, 255))
def test_a_damaged_header_is_refused(place, change):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.bin")
        write_shard(path, [256, 1, 2], ByteTokenizer())
        content = bytearray(path.read_bytes())
        content[place] ^= change
        path.write_bytes(content)
        if place >= 160:  # nothing is said there
            assert open_shard(path).tokens.tolist() == [256, 1, 2]
        elif place >= 8:  # what begins otherwise is no shard of ours
            with pytest.raises(CorpusError, match="damaged header"):
                open_shard(path)


def test_damage_to_the_tokens_is_found(tmp_path):
    path = tmp_path / "a.bin"
    write_shard(path, [256, 1, 2, 256, 3, 4], ByteTokenizer())
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(CorpusError, match="has 266 bytes, its header says 268: it is cut short"):
        load_corpus(DataConfig(source=str(path)))
    path.write_bytes(content[:-2] + b"\x05\x00")
    with pytest.raises(CorpusError, match="is damaged: its sha256 is another one"):
        load_corpus(DataConfig(source=str(path), validation_fraction=0.5))


def test_a_shard_of_another_tokenizer_is_refused(tmp_path):
    write_shard(tmp_path / "a.bin", [256, 1, 2, 256, 3, 4], ByteTokenizer())
    tokenizer = BytePairTokenizer.train([b"some text " * 50], 280)
    tokenizer.save(tmp_path / "tokenizer.json")
    config = DataConfig(source=str(tmp_path / "a.bin"), tokenizer=str(tmp_path / "tokenizer.json"))
    with pytest.raises(CorpusError, match=r"a.bin' is of another tokenizer than '.*tokenizer.json' \(sha256 "):
        load_corpus(config)
    write_shard(tmp_path / "a.bin", [tokenizer.separator, 1, 2, tokenizer.separator, 3, 4], tokenizer)
    assert load_corpus(config).tokenizer.hash == tokenizer.hash
    with pytest.raises(CorpusError, match=r"documents in the shard .* start with 0, not 7"):
        load_corpus(config.replace(document_token=7))


def test_bare_ids_take_their_documents_from_a_header(tmp_path):
    write_shard(tmp_path / "a.bin", [99, 1, 2, 99, 3, 4], RawTokens(100, 99))
    config = DataConfig(source=str(tmp_path / "a.bin"), tokenizer="none", vocab_size=100, validation_fraction=0.5)
    assert load_corpus(config).train.separator == 99
