"""Files of records, of which one field is text: JSON lines, Parquet, Arrow as Hugging Face's `datasets` saves it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from zoo.data.compressed import chunks_of, kind_of, lines_of, opened, optional_pyarrow, seekable
from zoo.errors import CorpusError, nearest

__all__ = ["is_of_records", "read_records"]

_ROWS = 256  # at a time
_ARROW_FILE = b"ARROW1"  # begins the format that is read from any place; the other one is a stream


def is_of_records(path: Path) -> bool:
    """Whether a file's name says that it holds records."""
    return kind_of(path) in _READERS


def read_records(path: Path, column: str) -> Iterator[bytes]:
    """Yield the texts in one column of a file as UTF-8, one at a time; rows without one are left out.

    Args:
        path: ends in `.jsonl`, `.ndjson`, `.parquet` or `.arrow`, packed (`.gz`, `.zst`) or not.
        column: its name.

    Raises:
        CorpusError: the file cannot be read or is damaged, has no such column, or no text in it; or the library that
            reads it is not installed.
    """
    for text in _READERS[kind_of(path)](path, column):
        if text:
            yield _utf8(text)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # JSON can write halves of characters
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _read_json_lines(path: Path, column: str) -> Iterator[str | None]:
    for number, line in enumerate(lines_of(chunks_of(path)), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)  # bytes of UTF-8, with or without its mark at the beginning
        except (ValueError, RecursionError) as error:
            _refuse(path, f"line {number} is no JSON: {error}")
        if not isinstance(record, dict):
            _refuse(path, f"line {number} is no JSON object, but {_json_kind(record)}")
        if column not in record:
            _refuse(path, f"line {number} {_lacks(column, list(record), 'key')}")
        text = record[column]
        if not isinstance(text, str | None):
            _refuse(path, f"line {number} has {_json_kind(text)} under {column!r}, expected text (data.column)")
        yield text


def _json_kind(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def _read_parquet(path: Path, column: str) -> Iterator[str | None]:
    library = optional_pyarrow(path)
    from pyarrow import parquet

    with seekable(path) as file:
        try:
            table = parquet.ParquetFile(file)
            _check_column(library, path, column, table.schema_arrow)
            for batch in table.iter_batches(_ROWS, columns=[column], use_threads=False):
                yield from batch.column(0).to_pylist()
        except (library.ArrowInvalid, library.ArrowException) as error:
            _refuse(path, f"is no sound Parquet file: {error}")


def _read_arrow(path: Path, column: str) -> Iterator[str | None]:
    library = optional_pyarrow(path)
    with opened(path) as file:
        is_stream = file.read(len(_ARROW_FILE)) != _ARROW_FILE
    with seekable(path) as file:
        try:
            if is_stream:
                batches = library.ipc.open_stream(file)
                schema = batches.schema
            else:
                reader = library.ipc.open_file(file)
                schema = reader.schema
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            _check_column(library, path, column, schema)
            for batch in batches:
                texts = batch.column(schema.get_field_index(column))
                for start in range(0, len(texts), _ROWS):
                    yield from texts.slice(start, _ROWS).to_pylist()
        except (library.ArrowInvalid, library.ArrowException) as error:
            _refuse(path, f"is no sound Arrow file: {error}")


def _check_column(library: Any, path: Path, column: str, schema: Any) -> None:
    if schema.get_field_index(column) < 0:
        _refuse(path, _lacks(column, schema.names, "column"))
    kind = schema.field(column).type
    value = kind.value_type if library.types.is_dictionary(kind) else kind
    checks = (library.types.is_string, library.types.is_large_string, library.types.is_string_view)
    if not any(check(value) for check in checks):
        _refuse(path, f"has {kind} in the column {column!r}, expected text (data.column)")


def _lacks(column: str, names: list[str], what: str) -> str:
    there = ", ".join(map(repr, names)) or "none"
    return f"has no {what} {column!r} (data.column), but {there}{nearest(column, names)}"


def _refuse(path: Path, problem: str) -> NoReturn:
    raise CorpusError(" ".join(f"data.source: {str(path)!r} {problem}".split())) from None


_READERS: dict[str, Callable[[Path, str], Iterator[str | None]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
