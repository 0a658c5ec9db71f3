"""Documents that are too short are left out before the split, by their tokens and not their bytes."""

from pathlib import Path

import pytest

from zoo.data import ByteTokenizer, DataConfig, encoding, load_corpus
from zoo.data.bpe import BytePairTokenizer
from zoo.data.documents import Documents
from zoo.data.lengths import SomeDocuments, long_documents
from zoo.data.prepare import prepare_shards
from zoo.data.sources import find_files
from zoo.data.split import Survey
from zoo.errors import ConfigError, CorpusError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents of 40 to 400 words that all have the same two, and one of many bytes and few tokens."""
    (tmp_path / "text").mkdir()
    for index in range(1, 11):
        (tmp_path / "text" / f"{index:02d}.txt").write_text(f"{index}\n" + "words and " * 20 * index)
    (tmp_path / "text" / "11.txt").write_text("wordswords" * 40 + "\n")
    return tmp_path / "text"


def documents_of(folder: Path) -> Documents:
    return Documents(find_files(str(folder)), DataConfig(source=str(folder)))


@pytest.mark.parametrize("processes", [1, 2])
def test_documents_count_by_their_tokens(folder, monkeypatch, processes):
    monkeypatch.setattr(encoding, "_BATCH", 500)  # batches begin and end within documents and between them
    monkeypatch.setattr(encoding, "_WHOLE", 300)
    monkeypatch.setattr(encoding, "_PIECE", 300)
    documents = documents_of(folder)
    tokenizer = BytePairTokenizer.train([b"wordswords words and words and"], 300)
    survey = Survey.of(documents)
    pieces = [list(encoding.cut_pieces(iter(document), 300)) for document in documents]
    counts = [sum(len(tokenizer.encode(piece)) for piece in document) for document in pieces]
    for minimum in (1, counts[3], counts[3] + 1, counts[10], counts[10] + 1, max(counts) + 1):
        found = long_documents(documents, survey.sizes, tokenizer, minimum, processes)
        assert found.tolist() == [count >= minimum for count in counts], minimum


def test_bytes_are_tokens_and_nothing_is_read_to_count_them(folder):
    survey = Survey.of(documents_of(folder))
    unread = (iter([]) for _ in survey.sizes)
    found = long_documents(unread, survey.sizes, ByteTokenizer(), survey.sizes[4], 1)
    assert found.tolist() == [size >= survey.sizes[4] for size in survey.sizes]


def test_what_is_short_is_in_no_shard_and_is_counted(folder, tmp_path):
    config = DataConfig(source=str(folder), validation_fraction=0.3)
    (folder / "copy.txt").write_bytes((folder / "10.txt").read_bytes())
    (folder / "picture").write_bytes(b"\0")
    manifest = prepare_shards(config, tmp_path / "out", minimum_tokens=1000)
    kept = [f"{index:02d}.txt" for index in range(5, 11)] + ["copy.txt"]
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in kept:
        (alone / name).write_bytes((folder / name).read_bytes())
    expected = load_corpus(config.replace(source=str(alone)))
    prepared = load_corpus(DataConfig(source=str(tmp_path / "out")))
    for side in ("train", "validation"):
        assert getattr(prepared, side)[:].tolist() == getattr(expected, side)[:].tolist()
    assert (manifest.corpus, manifest.documents, manifest.copies) == (expected.hash, 7, 1)
    assert (len(manifest.inputs), manifest.file_copies) == (12, 1)
    short = sum(path.stat().st_size for path in folder.iterdir() if path.name not in [*kept, "picture"])
    assert manifest.left_out == {"files": 1, "documents": 5, "text_bytes": short}
    assert manifest.settings["minimum_tokens"] == 1000


def test_some_documents_are_read_anew_at_every_pass(folder):
    documents = documents_of(folder)
    kept = Survey.of(documents).held_back(0.3)
    some = SomeDocuments(documents, kept)
    first, second = ([b"".join(document) for document in some] for _ in range(2))
    assert first == second == [b"".join(each) for each, is_kept in zip(documents, kept, strict=True) if is_kept]


def test_too_few_long_documents_are_refused(folder, tmp_path):
    config = DataConfig(source=str(folder))
    message = r"minimum_tokens: expected two documents or more of at least 2,000 tokens, got 1 of 11 documents"
    with pytest.raises(CorpusError, match=message):
        prepare_shards(config, tmp_path / "out", minimum_tokens=2000)
    unmarked = ByteTokenizer()
    unmarked.separator = None
    with pytest.raises(ConfigError, match="minimum_tokens: needs a tokenizer that starts documents"):
        long_documents([], [], unmarked, 5, 1)
    assert not (tmp_path / "out").exists()
