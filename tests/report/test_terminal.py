"""What others wrote is shown in a terminal as it is, and never obeyed."""

import io
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape

from zoo.report.tables import GuardedConsole, plain_table
from zoo.report.terminal import printable, say

TITLE = "\x1b]0;owned\x07"
"""Renames the window of a terminal."""


@given(st.text(st.characters() | st.characters(categories=("Cc", "Cf"))))
def test_nothing_that_is_left_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    left = {unicodedata.category(character) for character in shown if character not in "\n\t"}
    assert left.isdisjoint({"Cc", "Cs"})
    assert printable(shown) == shown


@given(st.text(st.characters(exclude_categories=("C",)) | st.sampled_from("\n\t")))
def test_plain_text_stays(text: str) -> None:
    assert printable(text) == text


def test_escapes_are_written_out() -> None:
    assert printable("a\x1b[2J\x9b\u202eb\r\n") == "a\\x1b[2J\\x9b\\u202eb\\r\n"


@pytest.mark.parametrize(("terminal", "expected"), [(False, TITLE), (True, r"\x1b]0;owned\x07")])
def test_a_line_is_as_it_is_but_for_a_terminal(terminal: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", out)
    say(TITLE)
    assert out.getvalue() == f"{expected}\n"


def test_tables_are_guarded_too() -> None:
    console = GuardedConsole(file=io.StringIO(), force_terminal=True, width=80, highlight=False)
    table = plain_table(escape(TITLE))
    table.add_row(escape(f"[b]{TITLE}"))
    console.print(table)
    console.print(escape(TITLE), markup=True)
    console.print(TITLE, markup=False)
    text = console.file.getvalue()
    assert text.count(r"\x1b]0;owned\x07") == 4
    assert "\x1b]" not in text
    assert "\x07" not in text
