"""What a study leaves in its folder, apart from its runs."""

from pathlib import Path

from zoo.report.files import replace_file
from zoo.study.page import render_page
from zoo.study.plots import LIGHT, PLOTS, render
from zoo.study.summary import StudySummary

__all__ = ["write_report"]


def write_report(summary: StudySummary, folder: Path) -> None:
    """Write `summary.json`, `summary.csv`, the plots as PNG and last the page, `index.html`, each whole or not at all.

    Raises:
        TrainingError: a file cannot be written.
    """
    replace_file(folder / "summary.json", summary.to_json().encode())
    replace_file(folder / "summary.csv", summary.to_csv().encode())
    for plot in PLOTS:
        replace_file(folder / f"{plot.name}.png", render(plot, summary, LIGHT, "png"))
    replace_file(folder / "index.html", render_page(summary).encode())
