"""The table of a study: for the files, and for the terminal."""

from pathlib import Path
from textwrap import wrap

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.report.tables import GuardedConsole
from zoo.study.columns import Column, columns, short_columns
from zoo.study.results import VariantSummary
from zoo.study.summary import StudySummary

__all__ = ["print_summary", "text_rows"]


def text_rows(summary: StudySummary) -> tuple[list[str], list[list[str]]]:
    """Return headings, and a row for each variant and the bigram model, with every column."""
    chosen = columns(summary)
    rows = [[variant.name, *(column.text(variant) for column in chosen)] for variant in summary.variants]
    baseline = ["bigram model", *(column.baseline for column in chosen)]
    headings = ["variant", *(column.heading for column in chosen)]
    return headings, rows if summary.bigram_bits is None else [*rows, baseline]


def print_summary(summary: StudySummary, page: Path, console: Console | None = None) -> None:
    """Print the table of a study and where its page is; numbers stay whole from 80 characters' width on."""
    console = console or GuardedConsole()
    table = Table(
        title=escape(summary.title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("variant", no_wrap=True)
    chosen = short_columns(summary)
    for column in chosen:
        # Headings are wrapped here, and what may not stay on one line is the difference in parameters alone.
        heading = "\n".join(wrap(column.heading, width=8, break_long_words=False))
        table.add_column(heading, justify="right", no_wrap=column.heading != "parameters")
    for variant in summary.variants:
        cells = [_cell(column, variant, summary) for column in chosen]
        table.add_row(escape(variant.name), *cells)
    if summary.bigram_bits is not None:
        table.add_section()
        table.add_row("bigram model", *(column.baseline for column in chosen), style="dim")
    console.print(table)
    for each in summary.divergences:
        console.print(f"[yellow]{escape(str(each))} diverged: {escape(each.message)}[/yellow]", soft_wrap=True)
    for name in summary.unfinished:
        console.print(f"[yellow]{escape(summary.with_waiting(name))} is not finished[/yellow]")
    console.print(f"Page: {escape(str(page))}", soft_wrap=True)


def _cell(column: Column, variant: VariantSummary, summary: StudySummary) -> str:
    style = "[bold green]" if column.is_best(variant, summary.variants) else ""
    return style + escape(column.text(variant))
