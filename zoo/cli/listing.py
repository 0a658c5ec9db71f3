"""`zoo list`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.report.tables import GuardedConsole

if TYPE_CHECKING:
    from zoo.recipe import Recipe

__all__ = ["list_command"]


@click.command("list")
@click.option("--matrix", is_flag=True, help="Only the grid of recipes by mixers, with parameters in millions.")
def list_command(matrix: bool) -> None:
    """List the recipes, mixers and studies that come with the package.

    A file of your own serves as well: zoo show path/to/mine.yaml
    """
    if matrix:
        _print_matrix(GuardedConsole())
        return
    from zoo.accounting import count_parameters
    from zoo.mixers import mixers
    from zoo.recipe import available_recipes, load_recipe
    from zoo.recipe.study import available_studies, load_study

    console = GuardedConsole()
    recipes = [load_recipe(name) for name in available_recipes()]
    _print(
        console,
        "Recipes",
        [(recipe.name, f"{count_parameters(recipe).total:,}", recipe.description) for recipe in recipes],
        "zoo show RECIPE, zoo train RECIPE",
    )
    summaries = {name: sys.modules[spec.build.__module__].__doc__ or "" for name, spec in mixers.items()}
    rows = [(name, text.partition("\n")[0]) for name, text in summaries.items()]
    _print(console, "Mixers", rows, "mixer=NAME after any recipe")
    studies = [(name, load_study(name).description) for name in available_studies()]
    _print(console, "Studies", studies, "zoo ablate STUDY")


def _print(console: Console, title: str, rows: Sequence[tuple[str, ...]], usage: str) -> None:
    """Print rows of a name, numbers and a description under a title that says what the names are for."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    for column in range(len(rows[0])):
        number = 0 < column < len(rows[0]) - 1
        table.add_column(no_wrap=column < len(rows[0]) - 1, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(f"[bold]{title}[/bold]  [dim]{usage}[/dim]")
    console.print(table)
    console.print()


def _print_matrix(console: Console) -> None:
    """Print what every mixer makes of every recipe, a recipe's own in bold."""
    from zoo.mixers import mixers
    from zoo.recipe import available_recipes, load_recipe

    recipes = [load_recipe(name) for name in available_recipes()]
    columns = [_matrix_column(recipe) for recipe in recipes]
    for part in _parts(columns, console.width - max(map(len, mixers)) - 1):
        table = Table("", box=None, padding=(0, 1, 0, 1))
        for heading, _ in part:
            table.add_column(heading, justify="right")
        for mixer in mixers:
            table.add_row(mixer, *(cells[mixer] for _, cells in part))
        console.print(table)
    console.print("[dim]Million parameters; bold: the recipe's own mixer. zoo train RECIPE mixer=NAME[/dim]")


_Column = tuple[str, dict[str, str]]
"""A recipe's name in lines, and what stands beside each mixer."""


def _matrix_column(recipe: Recipe) -> _Column:
    from zoo.builder import configure
    from zoo.mixers import mixers

    cells = {}
    for mixer in mixers:
        own = recipe.mixers is None and mixer == recipe.mixer.name
        millions = f"{_parameters(recipe if own else configure(recipe, mixer=mixer)) / 1e6:.1f}"
        cells[mixer] = f"[bold]{millions}[/bold]" if own else millions
    return recipe.name.replace("-", "-\n"), cells


def _parameters(recipe: Recipe) -> int:
    """Return the parameters of a recipe's model, from two layers of it where all but the first are alike."""
    import torch

    from zoo.accounting import count_parameters
    from zoo.budget.layers import layer_costs

    if len(set(recipe.layer_mixers)) > 1:
        return count_parameters(recipe).total
    return layer_costs(recipe.model, recipe.layer_mixers[0], 1, torch.float32).parameters(recipe.model.layers)


def _parts(columns: Sequence[_Column], width: int) -> Iterator[list[_Column]]:
    """Cut a table's columns into as many tables as it takes, none of them wider than `width` characters."""
    part: list[_Column] = []
    left = width
    for column in columns:
        needed = max(map(len, column[0].split("\n"))) + 2
        if part and needed > left:
            yield part
            part, left = [], width
        part.append(column)
        left -= needed
    if part:
        yield part
