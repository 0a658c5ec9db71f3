"""A table of ratios as text for a terminal, as CSV and as JSON."""

import json
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.budget.wsfr import Ratio, RatioTable, source_text
from zoo.report.tables import csv_text

__all__ = ["print_table", "ratio_csv", "ratio_json"]

_COLUMNS = 5
"""Contexts side by side, which with a mixer's name and a source make eighty columns."""


def print_table(table: RatioTable, console: Console) -> None:
    """Print the ratios, which accounting they follow, its formula, and what to know of it."""
    console.print(f"[bold]Weight-state FLOP ratio of {escape(table.recipe)}[/bold]  accounting: {table.accounting}")
    for start in range(0, len(table.contexts), _COLUMNS):
        console.print(_part(table, slice(start, start + _COLUMNS)))
    console.print(f"{table.accounting}: {table.formula}.", highlight=False)
    for note in table.notes:
        console.print(escape(note), highlight=False)


def _part(table: RatioTable, columns: slice) -> Table:
    """Return the table of some of the contexts, and where the numbers come from unless all are counted."""
    derived = any(row.source != "counted" for row in table.rows)
    part = Table("mixer", box=SIMPLE_HEAD)
    for context in table.contexts[columns]:
        part.add_column(f"{context:,}", justify="right", no_wrap=True)
    if derived:
        part.add_column("source")
    for row in table.rows:
        ratios = row.ratios[columns]
        sources = [source_text(ratios)] if derived else []
        part.add_row(escape(row.label), *(ratio.text for ratio in ratios), *sources)
    return part


def ratio_csv(table: RatioTable) -> str:
    """Write a line for each mixer and context; fields without a value are empty."""
    lines = [
        {"recipe": table.recipe, "accounting": table.accounting, "mixer": row.label, "source": ratio.source}
        | _fields(ratio)
        for row in table.rows
        for ratio in row.ratios
    ]
    return csv_text(list(lines[0]), lines)


def ratio_json(table: RatioTable) -> str:
    """Write the whole table, formula and notes included; fields without a value are null."""
    values = {
        "recipe": table.recipe,
        "accounting": table.accounting,
        "formula": table.formula,
        "notes": table.notes,
        "rows": [
            {"mixer": row.label, "source": row.source, "ratios": [_fields(ratio) for ratio in row.ratios]}
            for row in table.rows
        ],
    }
    return json.dumps(values, indent=2) + "\n"


def _fields(ratio: Ratio) -> dict[str, Any]:
    budget = ratio.budget
    return {
        "context": ratio.context,
        "ratio": ratio.value,
        "text": ratio.text,
        "source": ratio.source,
        "published": ratio.published,
        "weight_flops_per_token": None if budget is None else budget.weight_flops,
        "state_flops_per_token": None if budget is None else budget.state_flops,
        "forward_flops_per_token": None if budget is None else budget.forward_flops,
        "training_flops_per_token": None if budget is None else budget.training_flops,
        "state_bytes": None if budget is None else budget.state_bytes,
    }
