"""Text is tokenized once: what is kept is taken, by one process or several, and told from what is another."""

import logging
from pathlib import Path

import pytest

from zoo.data import Corpus, DataConfig, corpus, load_corpus
from zoo.data.bpe import BytePairTokenizer
from zoo.data.cache import cache_folder, kept
from zoo.errors import CorpusError

from .forked import forked

TEXT = "some words of a text that is about nothing much, and some more words\n"


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    (tmp_path / "text").mkdir()
    for index in range(20):
        (tmp_path / "text" / f"{index:02d}.txt").write_text(f"{index} {TEXT}" * 9)
    BytePairTokenizer.train([TEXT.encode()], 300).save(tmp_path / "tokenizer.json")
    return DataConfig(
        source=str(tmp_path / "text"),
        tokenizer=str(tmp_path / "tokenizer.json"),
        cache=str(tmp_path / "cache"),
        validation_fraction=0.2,
    )


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("tokenized once more")


def same(one: Corpus, other: Corpus) -> bool:
    return (one.hash, one.copies, one.train[:].tolist(), one.validation[:].tolist()) == (
        other.hash, other.copies, other.train[:].tolist(), other.validation[:].tolist(),
    )  # fmt: skip


def test_text_is_tokenized_once(config, tmp_path, monkeypatch, caplog):
    first = load_corpus(config)
    (record,) = caplog.records
    assert "KiB of tokens are kept in " in record.getMessage()
    assert str(tmp_path / "cache") in record.getMessage()
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "write_shards", refuse)
        assert same(load_corpus(config), first)
    assert len(caplog.records) == 1
    with monkeypatch.context() as patch:  # nor is the cache another corpus
        patch.setattr(corpus, "_WORTH_KEEPING", 2**40)
        assert same(load_corpus(config.replace(cache=None)), first)


@pytest.mark.parametrize("change", ["text", "tokenizer", "document_token", "validation_fraction"])
def test_what_tokens_depend_on_makes_others(config, tmp_path, change):
    before = load_corpus(config)
    if change == "text":
        (tmp_path / "text" / "00.txt").write_text("other text\n" * 20)
    elif change == "tokenizer":
        BytePairTokenizer.train([TEXT.encode()[::-1]], 290).save(tmp_path / "tokenizer.json")
    else:
        config = config.replace(**{change: {"document_token": 7, "validation_fraction": 0.4}[change]})
    after = load_corpus(config)
    assert not same(before, after)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


def test_several_processes_tokenize_once(config, tmp_path):
    def load() -> tuple[str, int]:
        told: list[logging.LogRecord] = []
        logging.getLogger("zoo.data.corpus").addHandler(handler := logging.Handler())
        handler.emit = told.append  # type: ignore[method-assign]
        return load_corpus(config).hash, len(told)

    results = forked(load, load, load, load)
    assert len({digest for digest, _ in results}) == 1
    assert sum(count for _, count in results) == 1


def test_small_texts_and_bytes_leave_nothing_behind(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    load_corpus(config.replace(cache=None))
    load_corpus(config.replace(tokenizer="bytes"))
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(corpus, "_WORTH_KEEPING", 1)
    load_corpus(config.replace(cache=None))
    assert (tmp_path / "home" / "mixer-zoo" / "tokens").is_dir()


def test_the_cache_is_the_users_unless_stated(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder(None) == Path.home() / ".cache" / "mixer-zoo" / "tokens"
    assert cache_folder("~/kept") == Path.home() / "kept"


def test_a_cache_that_cannot_be_written_is_done_without(config, tmp_path, monkeypatch, caplog):
    whole = load_corpus(config)
    caplog.clear()
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(corpus, "_WORTH_KEEPING", 1)
    assert same(load_corpus(config.replace(cache=None)), whole)
    (record,) = caplog.records
    assert "tokens are not kept for the next run (data.cache names another folder)" in record.getMessage()
    with pytest.raises(CorpusError, match="home: cannot be written: "):
        load_corpus(config.replace(cache=str(tmp_path / "home")))


def test_a_full_disk_while_tokens_are_kept_is_done_without(config, tmp_path, monkeypatch):
    whole = load_corpus(config)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(corpus, "_WORTH_KEEPING", 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)  # after the text was read
    assert same(load_corpus(config.replace(cache=None)), whole)
    assert [path.name for path in (tmp_path / "home" / "mixer-zoo" / "tokens").iterdir() if path.is_dir()] == []


def test_what_fails_is_not_kept(tmp_path):
    def fail(folder: Path) -> None:
        raise CorpusError("no")

    with pytest.raises(CorpusError, match="no"):
        kept(tmp_path, "key", fail)
    assert kept(tmp_path, "key", Path.mkdir) == tmp_path / "key"
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match="file: cannot be written: File exists"):
        kept(tmp_path / "file", "key", Path.mkdir)
