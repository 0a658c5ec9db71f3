"""Any tokenizer.json: what starts documents, which bytes fall to a token, what is lost."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from zoo.data import (
    DataConfig,
    bytes_in,
    bytes_of,
    load_corpus,
    load_tokenizer,
    split_documents,
    validation_batches,
    write_shard,
)
from zoo.data.library import FileTokenizer
from zoo.errors import ConfigError

TEXT = "The cat sat on the mat, \u00e9t\u00e9 \U0001f600\nand  there. " * 20


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2's, but with a space before the text, as in RoBERTa."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    return backend


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2's."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "t", "\u2581a", "at"]
    merges = [("\u2581", "a"), ("a", "t")]
    model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>"
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def unigram() -> tokenizers.Tokenizer:
    """As T5's: what is not known is lost."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    return backend


def word_piece() -> tokenizers.Tokenizer:
    """As BERT's: without capital letters, accents and white space."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    return backend


KINDS = {"byte-level": byte_level, "byte-fallback": byte_fallback, "unigram": unigram, "word-piece": word_piece}
STARTS = {"byte-level": "<s>", "byte-fallback": "<s>", "unigram": "</s>", "word-piece": "[CLS]"}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind: str, tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    path = tmp_path_factory.mktemp(kind) / "tokenizer.json"
    KINDS[kind]().save(str(path))
    loaded = load_tokenizer(str(path))
    assert isinstance(loaded, FileTokenizer)
    return loaded


@given(text=st.text() | st.text(st.sampled_from(" theTcatm\n.\u00e9")))
def test_the_bytes_of_its_tokens_are_those_of_the_text(tokenizer, text):
    ((ids, counts),) = tokenizer.encode_counted([text.encode()])
    assert ids.tolist() == tokenizer.encode(text).tolist()
    assert counts.sum() == (len(text.encode()) if len(ids) else 0)


@given(text=st.text() | st.text(st.sampled_from(" theTcatm\n.\u00e9")))
def test_text_comes_back_where_nothing_is_lost(tokenizer, kind, text):
    if kind == "byte-fallback":
        assert tokenizer.losses == ()
        assert tokenizer.decode(tokenizer.encode(text)) == text
    if kind == "byte-level":  # it puts a space where there is none
        assert tokenizer.decode(tokenizer.encode(text)) in (text, f" {text}")


@given(words=st.lists(st.sampled_from(["the", "cat", "sat", "mat"]), min_size=2, max_size=8), data=st.data())
def test_a_continuation_keeps_its_first_space(tokenizer, words, data):
    ids = tokenizer.encode(" ".join(words))
    cut = data.draw(st.integers(1, len(ids)))
    assert tokenizer.decode(ids[:cut]) + tokenizer.decode_after(ids[:cut], ids[cut:]) == tokenizer.decode(ids)


def test_documents_start_with_what_the_file_has(tokenizer, kind):
    assert tokenizer.separator == tokenizer._backend.token_to_id(STARTS[kind])
    assert tokenizer.separator not in tokenizer.encode(f"a {STARTS[kind]} b")
    assert not tokenizer.knows_bytes


def test_bits_per_byte_count_the_bytes_of_the_text(tokenizer, kind, tmp_path, caplog):
    tokenizer._backend.save(str(tmp_path / "tokenizer.json"))
    texts = [f"{index} {TEXT}" for index in range(30)]
    (tmp_path / "text").mkdir()
    for index, text in enumerate(texts):
        (tmp_path / "text" / f"{index:02d}").write_text(text, newline="")
    config = DataConfig(
        source=str(tmp_path / "text"), tokenizer=str(tmp_path / "tokenizer.json"), validation_fraction=0.2
    )
    corpus = load_corpus(config)
    counts = corpus.validation.byte_counts
    assert counts is not None
    _, held_back = split_documents([text.encode() for text in texts], 0.2)
    assert int(counts[:].sum()) == sum(map(len, held_back))
    assert int((corpus.validation[:] == tokenizer.separator).sum()) == len(held_back)
    # Of a window as of the whole, and of ids on average.
    batches = validation_batches(corpus.validation, 2, 16, 10**6)
    for batch in batches:
        assert bytes_of(batch, corpus.tokenizer) > 0
    everything = validation_batches(corpus.validation, 1, len(corpus.validation) - 1, 10**6)
    assert bytes_of(everything[0], corpus.tokenizer) == int(counts[1:].sum())
    assert bytes_in(everything[0].targets, corpus.tokenizer) == pytest.approx(int(counts[1:].sum()), abs=2)
    told = [record.getMessage() for record in caplog.records]
    assert bool(told) == bool(tokenizer.losses)
    if kind == "word-piece":
        assert "does not give back capital letters, runs of spaces, line ends, " in told[0]
        assert "bits per byte count the bytes of the text as it was read" in told[0]
    # Shards that do not state bytes say so.
    write_shard(tmp_path / "a.bin", corpus.validation[:], corpus.tokenizer)
    load_corpus(config.replace(source=str(tmp_path / "a.bin")))
    assert "the shards do not say how many bytes their tokens stand for" in caplog.records[-1].getMessage()


def test_how_a_file_is_laid_out_does_not_matter(tmp_path):
    backend = byte_fallback()
    backend.save(str(tmp_path / "pretty.json"), pretty=True)
    backend.enable_truncation(7)
    backend.save(str(tmp_path / "plain.json"), pretty=False)
    pretty, plain = (load_tokenizer(str(tmp_path / f"{name}.json")) for name in ("pretty", "plain"))
    assert pretty.hash == plain.hash
    assert len(plain.encode("a" * 50)) > 7
    backend.add_tokens(["tat"])
    backend.save(str(tmp_path / "other.json"))
    assert load_tokenizer(str(tmp_path / "other.json")).hash != plain.hash


def test_vocabularies_over_65536_are_uint32(tmp_path):
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {f"never{index}": 256 + index for index in range(70_000)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|begin_of_text|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    config = DataConfig(source=str(tmp_path / "*.txt"), tokenizer=str(tmp_path / "tokenizer.json"))
    corpus = load_corpus(config)
    assert corpus.vocab_size == 70_257
    assert corpus.train[:1].tolist() == [70_256]
    assert corpus.train.dtype == np.uint32
    assert corpus.tokenizer.decode(corpus.validation[:]) in ("text a", "text b", "text c")
    (batch,) = validation_batches(corpus.validation, 1, 4, 1)
    assert (batch.tokens[0, 0], batch.resets[0, 0]) == (70_256, True)


def test_no_token_that_starts_documents_is_one_line(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "unknown": 1}, unk_token="unknown"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"no token is called <\|document\|>.*; state data\.document_token"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path / "tokenizer.json"), 1).separator == 1
