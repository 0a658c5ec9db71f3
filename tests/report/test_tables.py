"""The same rows as text, CSV, Markdown and LaTeX."""

import csv
import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from zoo.errors import TrainingError
from zoo.report.tables import console_beside, csv_rows, csv_text, latex_text, markdown_text, plain_table


def test_a_plain_table_is_narrow_with_numbers_to_the_right() -> None:
    table = plain_table("mixer", "ms a\nstep", "share")
    table.add_row("softmax", "1.5", "12%")
    table.add_row("linear", "12.25", "3%")
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(table)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[1:2] + lines[3:] == ["mixer     step  share", "softmax    1.5    12%", "linear   12.25     3%"]


def test_csv_leaves_empty_what_is_missing() -> None:
    rows = [{"a": 1, "b": 'x,"y"'}, {"a": None}]
    text = csv_text(["a", "b"], rows)
    assert text.splitlines()[0] == "a,b"
    assert list(csv.DictReader(io.StringIO(text))) == [{"a": "1", "b": 'x,"y"'}, {"a": "", "b": ""}]


def test_rows_are_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with csv_rows(path, ["a", "b"]) as write:
        assert path.read_text() == "a,b\n"
        write({"b": 2})
        assert path.read_text() == "a,b\n,2\n"
    with csv_rows(None, ["a"]) as write:
        write({"a": 1})


def test_only_what_cannot_be_written_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be written"), csv_rows(tmp_path / "no/rows.csv", ["a"]):
        pass
    with pytest.raises(OSError, match="of the caller"), csv_rows(tmp_path / "rows.csv", ["a"]):
        raise OSError("of the caller")
    with pytest.raises(TrainingError, match="/dev/full: cannot be written: No space"), csv_rows(Path("/dev/full"), "a"):
        pass


def test_tables_make_room_for_a_file_on_standard_output() -> None:
    assert console_beside(None, Path("-")).stderr
    assert console_beside(Path("-")).stderr
    assert not console_beside(None, Path(os.devnull)).stderr


def test_markdown_and_latex_have_the_same_cells() -> None:
    headings, rows = ["variant", "100% of", "bits"], [["a|b_c", "-0.5", "2.1"], ["d", "1 & 2", "x"]]
    assert markdown_text(headings, rows).splitlines() == [
        "| variant | 100% of | bits |", "| --- | ---: | ---: |", "| a\\|b_c | -0.5 | 2.1 |", "| d | 1 & 2 | x |",
    ]  # fmt: skip
    assert markdown_text(headings, rows, words=2).splitlines()[1] == "| --- | --- | ---: |"
    assert latex_text(headings, rows, words=2).startswith(r"\begin{tabular}{llr}")
    assert latex_text(headings, rows).splitlines() == [
        r"\begin{tabular}{lrr}", r"variant & 100\% of & bits \\", r"\hline", r"a|b\_c & -0.5 & 2.1 \\",
        r"d & 1 \& 2 & x \\", r"\end{tabular}",
    ]  # fmt: skip
