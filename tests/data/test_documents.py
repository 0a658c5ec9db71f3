"""What is one document: a file, a line, a folder, a record."""

from pathlib import Path

import pytest

from zoo.data import ByteTokenizer, DataConfig, load_corpus
from zoo.data import reading as reading_module
from zoo.data.documents import Documents
from zoo.data.encoding import encode_documents
from zoo.data.reading import CorpusReader
from zoo.data.sources import find_files
from zoo.data.split import Survey
from zoo.errors import CorpusError


def documents_of(folder: Path, **options: object) -> list[bytes]:
    config = DataConfig(source=str(folder), **options)
    return [b"".join(document) for document in Documents(find_files(config.source), config)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {"a/1.txt": "one\r\n\ntwo", "a/2.txt": "three\n", "a/b/1.txt": "four", "c.jsonl": '{"text": "five"}\n'}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, newline="")
    return tmp_path


def test_a_file_is_a_document(folder):
    assert documents_of(folder) == [b"one\r\n\ntwo", b"three\n", b"four", b"five"]


def test_a_line_is_a_document_where_it_is_asked_for(folder):
    assert documents_of(folder, document_by="line") == [b"one", b"two", b"three", b"four", b"five"]


def test_a_folder_is_a_document_of_its_files_in_order(folder):
    assert documents_of(folder, document_by="folder") == [b"one\r\n\ntwo\nthree\n", b"four", b"five"]


def test_binary_files_leave_a_folder_whole(folder):
    (folder / "a" / "1b").write_bytes(b"n\0l")
    (folder / "a" / "1c").write_bytes(b"\xff")
    assert documents_of(folder, document_by="folder")[0] == b"one\r\n\ntwo\nthree\n"


def test_lines_of_another_encoding(tmp_path):
    (tmp_path / "a").write_text("\u00e9\n\u20ac\n", encoding="utf-16")
    assert documents_of(tmp_path, document_by="line", encoding="utf-16") == ["\u00e9".encode(), "\u20ac".encode()]


@pytest.mark.parametrize("content", ["longer than it was", "x"])
def test_text_that_changes_meanwhile_is_refused(tmp_path, content):
    for name in "abc":
        (tmp_path / name).write_text(f"text {name}")
    config = DataConfig(source=str(tmp_path))
    documents = Documents(find_files(config.source), config)
    survey = Survey.of(documents)
    (tmp_path / "b").write_text(content)
    with pytest.raises(CorpusError, match="the text changed while it was read"):
        list(encode_documents(CorpusReader(documents, survey, 0.5), ByteTokenizer()))


def test_a_lone_document_is_split_alike_in_memory_and_on_disk(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("".join(f"line {index} of a book\n" for index in range(500)))
    config = DataConfig(source=str(tmp_path / "a"))
    before = load_corpus(config)
    monkeypatch.setattr(reading_module, "_IN_MEMORY", 1)
    after = load_corpus(config)
    assert before.hash == after.hash
    for side in ("train", "validation"):
        assert getattr(before, side)[:].tolist() == getattr(after, side)[:].tolist()


def test_a_package_is_all_files_below_one_entry_of_the_source(folder):
    assert documents_of(folder, document_by="package") == [b"one\r\n\ntwo\nthree\nfour", b"five"]
    (folder / "alone.txt").write_text("six")
    assert documents_of(folder, document_by="package") == [b"one\r\n\ntwo\nthree\nfour", b"six", b"five"]


@pytest.mark.parametrize(
    ("pattern", "documents"),
    [
        ("a/*", [b"one\r\n\ntwo", b"three\n"]),
        ("**/1.txt", [b"one\r\n\ntwo\nfour"]),
        ("a*/**/1.txt", [b"one\r\n\ntwo\nfour"]),
        ("a/1.txt", [b"one\r\n\ntwo"]),
    ],
)
def test_packages_of_a_glob_lie_before_its_first_wildcard(folder, monkeypatch, pattern, documents):
    assert documents_of(folder / pattern, document_by="package") == documents
    monkeypatch.chdir(folder)
    assert documents_of(Path(pattern), document_by="package") == documents
