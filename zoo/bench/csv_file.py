"""CSV files that are written as measurements are made."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["csv_rows"]


@contextmanager
def csv_rows(path: Path | None, columns: Sequence[str]) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Open a CSV file with these columns, and return what writes a row into it at once; None: nothing."""
    if path is None:
        yield lambda _: None
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()

        def write(row: Mapping[str, object]) -> None:
            writer.writerow(row)
            file.flush()  # a run that is stopped leaves what it has

        yield write
