"""Tables: as text in a terminal, and as CSV, Markdown and LaTeX."""

import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo.report.files import is_standard_output, opened, writing
from zoo.report.terminal import printable

__all__ = ["GuardedConsole", "console_beside", "csv_rows", "csv_text", "latex_text", "markdown_text", "plain_table"]

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$"}  # noqa: RUF001
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


class GuardedConsole(Console):
    """A console that shows control characters in a terminal, in place of obeying them."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text) if self.is_terminal else text, **options)


def plain_table(*headings: str, words: int = 1) -> Table:
    """Return a table without rows, narrow and without frames.

    Args:
        headings: of the columns, at their bottom.
        words: so many columns on the left are words; all others are numbers.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(
            heading, justify="left" if index < words else "right", vertical="bottom", no_wrap=index >= words
        )
    return table


def console_beside(*paths: Path | None) -> Console:
    """Return standard output for tables, or standard error where one of some files goes to standard output."""
    return GuardedConsole(stderr=any(path is not None and is_standard_output(path) for path in paths))


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    """Write rows under a header; what a row does not have, or has as None, is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@contextmanager
def csv_rows(path: Path | None, columns: Sequence[str]) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Open a CSV file with these columns, and return what writes a row into it at once; None: nothing.

    Raises:
        TrainingError: the file cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    with writing(path):
        file = opened(path)
    writer = csv.DictWriter(file, columns, lineterminator="\n")

    def write(row: Mapping[str, object]) -> None:
        with writing(path):
            writer.writerow(row)
            file.flush()  # a run that is stopped leaves what it has

    try:
        write({column: column for column in columns})
        yield write
    finally:
        if file is not sys.stdout:
            with suppress(OSError):  # what could not be written has been told
                file.close()


def markdown_text(headings: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Write a table with words in the first columns and numbers in the others, as GitHub's Markdown has it."""
    lines = [headings, [*["---"] * words, *["---:"] * (len(headings) - words)], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def latex_text(headings: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Write a table as a `tabular` that needs no package, with words in the first columns."""
    head, *body = (f"{' & '.join(map(_escape, line))} \\\\" for line in (headings, *rows))
    columns = "l" * words + "r" * (len(headings) - words)
    return "\n".join((f"\\begin{{tabular}}{{{columns}}}", head, r"\hline", *body, r"\end{tabular}", ""))


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
