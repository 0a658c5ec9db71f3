"""What is said while much text is read: nothing of little, a line now and then, a bar in a terminal."""

import io

import pytest

from zoo.data import progress
from zoo.data.progress import telling
from zoo.report.tables import GuardedConsole


def test_little_text_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with telling("reading text", 100) as advance:
        advance(100)
    assert capsys.readouterr() == ("", "")


def test_much_text_says_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    with telling("tokenizing", 4096) as advance:
        advance(1024)
    with telling("reading text", None) as advance:
        advance(2048)
    out, error = capsys.readouterr()
    assert out == ""
    first, second = error.splitlines()
    assert first.startswith("tokenizing: 1 KiB of 4 KiB (25%) in ")
    assert second.startswith("reading text: 2 KiB in ")


@pytest.mark.parametrize("total", [4096, None])
def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch, total: int | None) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(
        progress, "GuardedConsole", lambda **_: GuardedConsole(file=shown, force_terminal=True, width=100)
    )
    with telling("tokenizing", total) as advance:
        advance(1024)
    assert "tokenizing" in shown.getvalue()
    assert "\x1b[2K" in shown.getvalue()  # the line is cleared
