import sys

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from zoo.data import DataConfig, bytes_in, load_corpus, load_tokenizer, write_shard
from zoo.data.bpe import DOCUMENT, BytePairTokenizer
from zoo.errors import ConfigError, CorpusError, InputError

TEXT = "the cat sat on the mat, and the cat sat there; \u00e9t\u00e9 \U0001f600\n" * 20


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return BytePairTokenizer.train([TEXT.encode()], vocab_size=300)


@given(text=st.text() | st.text(st.sampled_from(" thecatsm\n")) | st.just(f"a {DOCUMENT} b"))
def test_any_text_round_trips_and_its_bytes_are_counted(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert tokenizer.separator not in ids
    assert tokenizer.decode(ids) == tokenizer.decode([tokenizer.separator, *ids]) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert np.array_equal(tokenizer.encode(text.encode()), ids)


def test_merges_shorten_the_text(tokenizer):
    assert 257 < tokenizer.vocab_size <= 300
    assert len(tokenizer.encode(TEXT)) < 0.7 * len(TEXT.encode())


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = load_tokenizer(str(path))
    assert np.array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))
    assert np.array_equal(loaded.byte_lengths, tokenizer.byte_lengths)
    assert loaded.separator == tokenizer.separator


def test_a_corpus_in_byte_pairs(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "text").mkdir()
    for index in range(20):
        (tmp_path / "text" / f"{index}.txt").write_text(f"{index} {TEXT}", newline="\n")
    options = {"tokenizer": str(tmp_path / "tokenizer.json"), "validation_fraction": 0.1}
    corpus = load_corpus(DataConfig(source=str(tmp_path / "text"), **options))
    assert corpus.vocab_size == tokenizer.vocab_size
    assert sum(int((side[:] == tokenizer.separator).sum()) for side in (corpus.train, corpus.validation)) == 20
    text = corpus.tokenizer.decode(corpus.validation[:])
    assert bytes_in(torch.from_numpy(corpus.validation[:].astype(np.int64)), corpus.tokenizer) == len(text.encode())
    write_shard(tmp_path / "text.bin", corpus.train[:])
    assert load_corpus(DataConfig(source=str(tmp_path / "text.bin"), **options)).train.separator == tokenizer.separator


def test_a_foreign_tokenizer_states_its_document_token(tmp_path):
    backend = tokenizers.Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet())}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"state data\.document_token"):
        BytePairTokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match="expected an id below 256, got 256"):
        BytePairTokenizer.load(tmp_path / "tokenizer.json", 256)
    assert BytePairTokenizer.load(tmp_path / "tokenizer.json", 7).separator == 7


def alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def test_a_tokenizer_that_loses_text_is_refused():
    backend = tokenizers.Tokenizer(models.WordLevel({DOCUMENT: 0, "unknown": 1}, unk_token="unknown"))
    with pytest.raises(ConfigError, match="text does not round-trip"):
        BytePairTokenizer(backend)


def test_what_is_no_tokenizer_file_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer.json' is no tokenizer.json: .*") as caught:
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert "\n" not in str(caught.value)


def test_training_names_what_is_wrong():
    with pytest.raises(InputError, match="vocab_size: expected 257 to 1048576, got 256"):
        BytePairTokenizer.train([b"text"], 256)
    with pytest.raises(CorpusError, match="at least one"):
        BytePairTokenizer.train([], 300)


def test_the_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.delitem(sys.modules, "zoo.data.library")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'mixer-zoo\[hf\]'"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
