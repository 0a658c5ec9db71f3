import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import DataConfig, bigram_bits_per_byte, compressed, load_corpus, split_documents, validation_batches
from zoo.data.sources import find_files, stdlib_files
from zoo.errors import ConfigError, CorpusError

from .forked import memory_taken

documents = st.lists(st.binary(min_size=1, max_size=30), min_size=2, max_size=12)
fractions = st.floats(0.01, 0.5)


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def load(source: object, **options: object):
    return load_corpus(DataConfig(source=str(source), **options))


@given(documents, fractions, st.randoms())
def test_the_split_depends_on_the_contents_alone(documents, fraction, random):
    training, validation = split_documents(documents, fraction)
    assert training
    assert validation
    assert sorted(training + validation) == sorted(documents)
    assert len(set(documents)) == 1 or not set(training) & set(validation)  # copies are on one side
    together = {document: documents.count(document) * len(document) for document in documents}
    budget, smallest = fraction * sum(map(len, documents)), min(together.values())
    assert sum(map(len, validation)) <= max(budget, smallest)
    shuffled = random.sample(documents, len(documents))
    for side, again in zip((training, validation), split_documents(shuffled, fraction), strict=True):
        assert sorted(side) == sorted(again)
        remaining = iter(shuffled)
        assert all(document in remaining for document in again)  # in the order given


@given(st.text(st.sampled_from("ab\u00e9\n\U0001f600"), min_size=2, max_size=400), fractions)
def test_a_lone_document_is_cut_between_characters(text, fraction):
    training, validation = split_documents([text.encode()], fraction)
    assert training
    assert validation
    assert sorted("".join(part.decode() for part in training + validation)) == sorted(text)
    assert all(part.decode() in text for part in training + validation)


@pytest.mark.parametrize("character", ["a", "\u00e9", "\u20ac", "\U0001f600"])
def test_a_lone_line_is_split_by_bytes_whatever_its_characters_take(character):
    text = "".join(character * 30 + str(index) for index in range(200))
    training, validation = split_documents([text.encode()], 0.05)
    assert 0.03 < sum(map(len, validation)) / len(text.encode()) <= 0.05
    assert sorted(b"".join(training + validation).decode()) == sorted(text)


def test_copies_fall_on_one_side_and_are_counted(tmp_path):
    files = {f"{copy}/{index}": f"{index} " * 20 for copy in "abc" for index in range(20)}
    corpus = load(write(tmp_path, files), validation_fraction=0.3)
    sides = [set(corpus.tokenizer.decode(side[:]).split()) for side in (corpus.train, corpus.validation)]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert corpus.copies == 40


def test_text_of_another_encoding_is_read_as_such(tmp_path, caplog):
    text = "caf\u00e9 \U0001f600\n" * 9
    write(tmp_path / "wide", {"a": text.encode("utf-16"), "b": text.encode("utf-16-be")})
    corpus = load(tmp_path / "wide" / "a", encoding="utf-16")
    assert not caplog.records
    assert corpus.hash == load(write(tmp_path / "plain", {"a": text}) / "a").hash
    write(tmp_path / "mixed", {"a": text, "b": "more", "c": "\u00e9".encode("latin-1"), "d": ""})
    load(tmp_path / "mixed")
    (record,) = caplog.records
    assert "left out 1 of 3 files that are no UTF-8 text (data.encoding" in record.getMessage()


def test_a_large_text_takes_less_memory_than_its_size(tmp_path):
    sizes = {"little": 2**16, "much": 96 * 2**20}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            for index in range(size // 2**16):
                file.write((f"{index} some words of text that goes on\n" * 2**11)[: 2**16].encode())

    def read(name: str) -> None:
        corpus = load_corpus(DataConfig(source=str(tmp_path / name)))
        assert len(corpus.train) + len(corpus.validation) > sizes[name]

    assert memory_taken(lambda: read("little"), lambda: read("much")) < 0.75 * sizes["much"]


def test_a_lone_file_keeps_long_stretches_whole(tmp_path):
    lines = [f"line {index} of a book that has no chapters\n" for index in range(2000)]
    corpus = load(write(tmp_path, {"book.txt": "".join(lines)}) / "book.txt")
    starts = [int((side[:] == 256).sum()) for side in (corpus.train, corpus.validation)]
    assert starts[0] <= starts[1] + 1 <= 5
    share = len(corpus.validation) / (len(corpus.train) + len(corpus.validation))
    assert 0.03 < share <= 0.051
    both = corpus.tokenizer.decode(np.concatenate([corpus.train[:], corpus.validation[:]]))
    assert sorted(both.splitlines(keepends=True)) == sorted(lines)


def test_folder_glob_and_copy_elsewhere_are_one_corpus(tmp_path):
    files = {f"{name}/{index}.txt": f"{name} {index}\n" * 9 for index in range(5) for name in ("b", "a")}
    one, other = write(tmp_path / "one", files), write(tmp_path / "other", dict(reversed(files.items())))
    corpora = [load(one), load(other), load(one / "**" / "*.txt")]
    for corpus in corpora[1:]:
        assert corpus.hash == corpora[0].hash
        assert np.array_equal(corpus.train[:], corpora[0].train[:])
        assert np.array_equal(corpus.validation[:], corpora[0].validation[:])
    assert load(one, validation_fraction=0.4).hash == corpora[0].hash
    (other / "a" / "0.txt").write_text("changed")
    assert load(other).hash != corpora[0].hash


def test_moving_text_between_files_changes_the_hash(tmp_path):
    one = load(write(tmp_path / "one", {"a": "ab", "b": "c"}))
    other = load(write(tmp_path / "other", {"a": "a", "b": "bc"}))
    assert one.hash != other.hash


def test_a_folder_gives_its_visible_text(tmp_path):
    text = {"a.txt": "text", "deep/b": "more"}
    skipped = {".git/c": "x", ".hidden": "x", "__pycache__/d": "x", "e.png": b"\x89PNG", "f": b"n\0l", "empty": ""}
    write(tmp_path / "folder", text | skipped)
    corpus = load(tmp_path / "folder")
    assert {corpus.tokenizer.decode(side[:]) for side in (corpus.train, corpus.validation)} == set(text.values())


def test_links_to_nowhere_and_pipes_are_skipped_in_a_folder(tmp_path):
    write(tmp_path, {"a": "1", "b": "2"})
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    assert [path.name for path in find_files(str(tmp_path))] == ["a", "b"]


def test_a_hidden_folder_can_be_named_itself(tmp_path):
    assert find_files(str(write(tmp_path / ".notes", {"a": "1", "b": "2"}))) == [
        tmp_path / ".notes" / "a",
        tmp_path / ".notes" / "b",
    ]


def test_a_name_with_glob_characters_is_a_file_first(tmp_path):
    write(tmp_path, {"a[1].txt": "1\n2\n", "a1.txt": "no"})
    assert find_files(str(tmp_path / "a[1].txt")) == [tmp_path / "a[1].txt"]


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "missing.txt", "no file or folder '.*missing.txt'"),
        ({}, "long" * 999, "cannot read '.*long': File name too long"),
        ({}, "*.txt", r"the glob '.*\*.txt' matches no files"),
        ({".hidden": "x"}, "", "the folder '.*' holds no files"),
        ({"a": ""}, "a", "holds no UTF-8 text"),
        ({"a": b"\xff\xfe"}, "a", "holds no UTF-8 text"),
        ({"a": "x"}, "a", "1 bytes of text are too few to hold some back"),
        ({"a.bin": b"1234", "b.txt": "text"}, "", r"mixes token shards \(\*.bin\) and other files"),
    ],
)
def test_a_bad_source_is_one_line(tmp_path, files, source, message):
    write(tmp_path, files)
    with pytest.raises(CorpusError, match=message) as caught:
        load(tmp_path / source)
    assert str(caught.value).startswith("data.source: ")
    assert "\n" not in str(caught.value)


def test_a_misspelt_stdlib_is_named():
    with pytest.raises(CorpusError, match=r"did you mean 'stdlib'\?"):
        load("stdlb")


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    write(tmp_path, {"secret.txt": "x"})

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(compressed, "open_regular", refuse)
    with pytest.raises(CorpusError, match=r"cannot read '.*secret.txt': Permission denied"):
        load(tmp_path / "secret.txt")


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CorpusError, match=r"cannot read '.*': Permission denied"):
        load(tmp_path)


def test_text_needs_a_tokenizer(tmp_path):
    with pytest.raises(CorpusError, match="'none' is for"):
        load(write(tmp_path, {"a": "1", "b": "2"}), tokenizer="none", vocab_size=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "none"}, "vocab_size must be stated"),
        ({"tokenizer": "none", "vocab_size": 9, "document_token": 9}, "document_token 9 is not below vocab_size 9"),
        ({"vocab_size": 50257}, "vocab_size 50257 is for tokenizer 'none'"),
        ({"document_token": 0}, "document_token 0 is not 256"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"source": ""}, "source"),
        ({"encoding": "utf-99"}, "encoding: is no encoding of text that Python knows, got 'utf-99'"),
        ({"encoding": "hex"}, "encoding: is no encoding of text"),
    ],
)
def test_a_contradictory_config_is_one_line(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        DataConfig(**options)
    assert "\n" not in str(caught.value)


@given(
    st.dictionaries(st.text("abc/", min_size=1, max_size=6).filter(lambda name: name.strip("/") == name), st.just("x"))
)
def test_files_come_in_the_order_of_their_relative_names(files):
    names = [name for name in files if "//" not in name]
    names = [name for name in names if not any(other.startswith(f"{name}/") for other in names)]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), dict.fromkeys(names, "x"))
        if names:
            assert [path.relative_to(folder).as_posix() for path in find_files(folder)] == sorted(names)


def test_the_standard_library_is_a_corpus():
    names = [path.as_posix() for path in stdlib_files()]
    assert not [name for name in names if re.search(r"/(tests?|idle_test|site-packages|dist-packages)/", name)]
    assert {"ast.py", "_parser.py", "base_events.py"} <= {Path(name).name for name in names}
    corpus = load_corpus(DataConfig())
    assert 5e6 < len(corpus.train) + len(corpus.validation) < 40e6
    assert 0.045 < len(corpus.validation) / len(corpus.train) < 0.055
    assert corpus.hash == load_corpus(DataConfig()).hash
    assert corpus.vocab_size == 257
    assert corpus.train[:1] == corpus.validation[:1] == 256
    assert (corpus.train[:] == 256).sum() > 300
    batches = validation_batches(corpus.validation, 8, 256, 100_000)
    assert 3 < bigram_bits_per_byte(corpus.train, batches, corpus.tokenizer) < 4.5
