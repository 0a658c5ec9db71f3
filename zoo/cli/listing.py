"""`zoo list`."""

import sys
from collections.abc import Sequence

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.report.tables import GuardedConsole

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
    from zoo.accounting import count_parameters
    from zoo.builder import configure
    from zoo.mixers import mixers
    from zoo.recipe import available_recipes, load_recipe

    recipes = [load_recipe(name) for name in available_recipes()]
    table = Table("", *(recipe.name.replace("-", "-\n") for recipe in recipes), box=None, padding=(0, 1, 0, 1))
    for column in table.columns[1:]:
        column.justify = "right"
    for mixer in mixers:
        cells = []
        for recipe in recipes:
            own = mixer == recipe.mixer.name
            counted = count_parameters(recipe if own else configure(recipe, mixer=mixer))
            millions = f"{counted.total / 1e6:.1f}"
            cells.append(f"[bold]{millions}[/bold]" if own else millions)
        table.add_row(mixer, *cells)
    console.print(table)
    console.print("[dim]Million parameters; bold: the recipe's own mixer. zoo train RECIPE mixer=NAME[/dim]")
