"""`zoo wsfr`."""

from pathlib import Path

import click

from zoo.cli.options import Names, csv_option, names, output_option, plot_option, token_counts

__all__ = ["wsfr"]

_RECIPE = "gpt2-124m-rotary"


@click.command()
@click.argument("recipe", default=_RECIPE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--mixers", default="recipe,softmax,linear,power", show_default=True, callback=names,
    help="With commas; power:p=3 sets an option, and recipe is what the recipe has.",
)  # fmt: skip
@click.option(
    "--contexts", default="1024,8192,65536,1000000", show_default=True, callback=token_counts,
    help="Tokens, with commas; 64K is 65536.",
)  # fmt: skip
@click.option(
    "--accounting", type=click.Choice(["exact", "authors", "paper"]), default="exact", show_default=True,
    help="exact counts what runs; authors is the authors' formula, paper a fit to their table.",
)  # fmt: skip
@csv_option
@output_option("json", "Also write this JSON file")
@plot_option
def wsfr(
    recipe: str,
    overrides: Names,
    mixers: Names,
    contexts: list[int],
    accounting: str,
    csv_path: Path | None,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Show the weight-state FLOP ratio of RECIPE by mixer and context.

    8:1 says that of nine operations for a token eight go to weights and one on the state. Each mixer takes the
    place of all of the recipe's. Nothing is allocated, so that sizes and contexts can be looked at which no
    machine could train.

    RECIPE is a name from `zoo list` or the path of a .yaml file, gpt2-124m-rotary if left out.

    \b
    Examples:
      zoo wsfr
      zoo wsfr hybrid-124m --mixers recipe,softmax,power:p=2,power:p=3 --plot wsfr.png
      zoo wsfr gpt2-124m --accounting paper
    """
    from zoo.budget.authors import authors_table
    from zoo.budget.paper import paper_table
    from zoo.budget.report import print_table, ratio_csv, ratio_json
    from zoo.budget.wsfr import exact_table
    from zoo.recipe import load_recipe
    from zoo.report.files import check_outputs, replace_file
    from zoo.report.tables import console_beside

    if "=" in recipe and not recipe.endswith((".yaml", ".yml")):
        recipe, overrides = _RECIPE, (recipe, *overrides)
    check_outputs(csv=csv_path, json=json_path, plot=plot_path)
    tables = {"exact": exact_table, "authors": authors_table, "paper": paper_table}
    table = tables[accounting](load_recipe(recipe, overrides), mixers, contexts)
    print_table(table, console_beside(csv_path, json_path, plot_path))
    if csv_path is not None:
        replace_file(csv_path, ratio_csv(table).encode())
    if json_path is not None:
        replace_file(json_path, ratio_json(table).encode())
    if plot_path is not None:
        from zoo.budget.plot import draw_ratios
        from zoo.report.plots import write_plot

        write_plot(plot_path, lambda: draw_ratios(table))
