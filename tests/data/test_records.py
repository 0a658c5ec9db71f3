"""JSON lines, Parquet and Arrow, packed or not: the texts of one column, and errors that name what is wrong where."""

import gzip
import json
import re
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from zoo.data import DataConfig, load_corpus
from zoo.data.compressed import lines_of
from zoo.data.records import read_records
from zoo.errors import CorpusError

texts = st.lists(st.text() | st.none(), max_size=8)
PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True)}


def json_lines(texts: list[str | None]) -> bytes:
    return b"".join(json.dumps({"id": 1, "text": text}).encode() + b"\n" for text in texts)


def parquet_file(texts: list[str | None]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())}), sink)
    return sink.getvalue().to_pybytes()


def arrow(texts: list[str | None], *, stream: bool, kind: pa.DataType | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": pa.array(texts, pa.string()).cast(kind or pa.string())})
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue().to_pybytes()


FORMATS = {
    "a.jsonl": json_lines,
    "b.ndjson": json_lines,
    "c.parquet": parquet_file,
    "d.arrow": lambda texts: arrow(texts, stream=True),
    "e.arrow": lambda texts: arrow(texts, stream=False),
    "f.arrow": lambda texts: arrow(texts, stream=True, kind=pa.large_string()),
}


@given(texts)
def test_every_format_gives_the_texts_in_order(texts):
    expected = [text.encode() for text in texts if text]
    with tempfile.TemporaryDirectory() as folder:
        for name, make in FORMATS.items():
            for suffix, pack in PACKERS.items():
                path = Path(folder, name + suffix)
                path.write_bytes(pack(make(texts)))
                assert list(read_records(path, "text")) == expected


@given(st.lists(st.sampled_from([b"", b"a", b"\n", b"\r\n", b"bc\n", b"\n\n"]), max_size=9))
def test_lines_are_those_of_the_whole(chunks):
    whole = b"".join(chunks)
    expected = [line.removesuffix(b"\r") for line in whole.split(b"\n")]
    assert list(lines_of(iter(chunks))) == (expected if expected[-1] else expected[:-1])


def test_records_are_documents_of_any_column(tmp_path):
    lines = [{"code": f"document {index}", "other": None} for index in range(20)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    corpus = load_corpus(DataConfig(source=str(tmp_path / "a.jsonl"), column="code", validation_fraction=0.2))
    sides = [corpus.tokenizer.decode(side[:]) for side in (corpus.train, corpus.validation)]
    assert sum((side[:] == 256).sum() for side in (corpus.train, corpus.validation)) == 20
    assert sorted("".join(sides)) == sorted("".join(line["code"] for line in lines))
    # Where documents lie does not matter.
    for index, line in enumerate(lines):
        (tmp_path / "files" / f"{index:02d}").parent.mkdir(exist_ok=True)
        (tmp_path / "files" / f"{index:02d}").write_text(line["code"])
    files = load_corpus(DataConfig(source=str(tmp_path / "files"), validation_fraction=0.2))
    assert files.hash == corpus.hash
    assert files.train[:].tolist() == corpus.train[:].tolist()


def test_halves_of_characters_are_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b\\ud83d\\ude00"}')
    assert list(read_records(tmp_path / "a.jsonl", "text")) == ["a\ufffdb\U0001f600".encode()]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"text": ', "'a.jsonl' line 3 is no JSON: Expecting value"),
        ("a.jsonl", b"[1]", "'a.jsonl' line 1 is no JSON object, but a list"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "x", "id": 1}',
            "line 2 has no key 'text' (data.column), but 'body', 'id'",
        ),
        ("a.jsonl", b'{"texts": "x"}', "has no key 'text' (data.column), but 'texts' (did you mean 'texts'?)"),
        ("a.jsonl", b'{"text": 3}', "line 1 has a number under 'text', expected text (data.column)"),
        ("a.jsonl", b"\xff", "'a.jsonl' line 1 is no JSON: "),
        ("a.jsonl", b'{"text": ""}\n', "holds no text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.parquet", b"PAR1 and no more", "'a.parquet' is no sound Parquet file: "),
        ("a.arrow", b"no Arrow at all", "'a.arrow' is no sound Arrow file: "),
        ("a.arrow", arrow(["x"] * 9, stream=True)[:-300], "'a.arrow' is no sound Arrow file: "),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "'a.txt.gz' is damaged or cut short: "),
        ("a.txt.gz", b"text", "'a.txt.gz' is damaged or cut short: "),
        ("a.txt.zst", PACKERS[".zst"](b"text" * 99)[:-3], "'a.txt.zst' is damaged or cut short: "),
        ("a.jsonl.zst", b"text", "'a.jsonl.zst' is damaged or cut short: "),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(CorpusError, match=re.escape(message)) as caught:
        load_corpus(DataConfig(source=name))
    assert str(caught.value).startswith("data.source: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_missing_or_wrong_column_is_named(tmp_path, name):
    table = pa.table({"body": ["x"], "length": [1]})
    if name.endswith("parquet"):
        parquet.write_table(table, tmp_path / name)
    else:
        with pa.ipc.new_stream(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    config = DataConfig(source=str(tmp_path / name))
    with pytest.raises(CorpusError, match=rf"{name}' has no column 'text' \(data.column\), but 'body', 'length'"):
        load_corpus(config)
    with pytest.raises(CorpusError, match=r"has int64 in the column 'length', expected text \(data.column\)"):
        load_corpus(config.replace(column="length"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.zst"])
def test_the_missing_library_is_named(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CorpusError, match=r"is read by an optional library: pip install 'mixer-zoo\[data\]'"):
        load_corpus(DataConfig(source=str(tmp_path / name)))


def save_to_disk(folder: Path, texts: list[str]) -> None:
    """What Hugging Face's `datasets` leaves, two files of it."""
    folder.mkdir(parents=True)
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (texts[:3], texts[3:]), strict=True):
        (folder / name).write_bytes(arrow(part, stream=True))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def test_a_saved_dataset_is_its_arrow_files(tmp_path):
    texts = [f"document {index}" for index in range(9)]
    save_to_disk(tmp_path / "set" / "train", texts)
    corpus = load_corpus(DataConfig(source=str(tmp_path / "set" / "train"), validation_fraction=0.3))
    decoded = "".join(corpus.tokenizer.decode(side[:]) for side in (corpus.train, corpus.validation))
    assert sorted(decoded) == sorted("".join(texts))
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(
        CorpusError, match=r"holds the splits 'train', 'test' of a dataset; name one, such as '.*train'"
    ):
        load_corpus(DataConfig(source=str(tmp_path / "set")))
