"""What a study leaves in its folder, apart from its runs."""

from pathlib import Path

from zoo.report.files import replace_file
from zoo.report.plots import LIGHT
from zoo.report.tables import latex_text, markdown_text
from zoo.study.page import render_page
from zoo.study.plots import plots_of, render
from zoo.study.summary import StudySummary
from zoo.study.table import text_rows

__all__ = ["write_report"]


def write_report(summary: StudySummary, folder: Path) -> None:
    """Write `summary.json`, `.csv`, `.md` and `.tex`, `runs.csv`, the plots as PNG and last the page.

    Each is whole or not there at all.

    Raises:
        TrainingError: a file cannot be written.
    """
    replace_file(folder / "summary.json", summary.to_json().encode())
    replace_file(folder / "summary.csv", summary.to_csv().encode())
    replace_file(folder / "runs.csv", summary.runs_to_csv().encode())
    headings, rows = text_rows(summary)
    replace_file(folder / "summary.md", markdown_text(headings, rows, words=2).encode())
    replace_file(folder / "summary.tex", latex_text(headings, rows, words=2).encode())
    for plot in plots_of(summary):
        replace_file(folder / f"{plot.name}.png", render(plot, summary, LIGHT, "png"))
    replace_file(folder / "index.html", render_page(summary).encode())
