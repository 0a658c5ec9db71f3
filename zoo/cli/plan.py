"""`zoo plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.options import Names, names, token_count

if TYPE_CHECKING:
    from zoo.budget.times import Times

__all__ = ["plan"]


@click.command()
@click.argument("recipe_of_layouts", default="", metavar="[RECIPE]")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--params", help="Parameters, for example 124M, 1.3B or 350000000; K, M and B are thousands.")
@click.option(
    "--context", required=True, callback=token_count,
    help="Tokens of a sequence, for example 65536 or 64K; K is 1,024 here, and M is 1,024 K.",
)  # fmt: skip
@click.option(
    "--times", type=click.Path(path_type=Path), help="CSV file of zoo bench op on your GPU.  [default: one H200]"
)
@click.option("--mixers", callback=names, help="What to choose from, with commas.  [default: all]")
@click.option("--recipe", default="gpt2-124m-rotary", show_default=True, help="Gives everything else.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Sequences that are decoded.")
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1), help="Models to print.")
@click.option(
    "--state-limit", default=1.0, show_default=True, type=click.FloatRange(0, 2**20, min_open=True),
    help="GiB that the state of one sequence may take.",
)  # fmt: skip
@click.option("--gpus", type=click.IntRange(1, 2**16), help="Lay out so many GPUs for RECIPE.")
@click.option("--memory", default=139.0, show_default=True, type=click.FloatRange(0, 2**20), help="GiB of a GPU.")
@click.option(
    "--links", default="", help="GPUs of a node, GB/s inside of it and between nodes, us of latency.  "
    "[default: node=8,inside=300,between=45,latency=20]",
)  # fmt: skip
@click.option(
    "--token-us", type=click.FloatRange(0, min_open=True),
    help="Microseconds that a token takes on one GPU, from zoo bench model.  [default: of its parts, as timed]",
)  # fmt: skip
def plan(recipe_of_layouts: str, overrides: Names, gpus: int | None, context: int, **options: Any) -> None:
    """Find models of a size whose work divides evenly between weights and state at a context; or lay out GPUs.

    Mixer, power, head width, layers and width vary. Below the table is a line for each model: put `zoo train` or
    `zoo show` before it, and it is trained or shown as planned, at that context. Nothing is allocated.

    With --gpus it is layouts of those GPUs for training RECIPE at the context: memory, what is sent, and how much of
    the time is computing, by a model of links and GPUs.

    \b
    Examples:
      zoo plan --params 124M --context 65536
      zoo plan --params 1.3B --context 8K --mixers softmax,power,gated-power --batch-size 64
      zoo plan --gpus 64 --context 1M gpt2-124m-rotary mixer=gated-power
      zoo plan --gpus 16 --context 256K llama-360m mixer=gated-power --links node=4,inside=200
    """
    given = (recipe_of_layouts, *overrides) if recipe_of_layouts else ()
    if gpus is not None:
        _lay_out(given, gpus, context, options)
    elif given:
        raise click.UsageError("RECIPE and overrides go with --gpus; a search starts from --recipe.")
    else:
        _search(context, options)


def _search(context: int, options: dict[str, Any]) -> None:
    from math import isnan

    from zoo.budget.plan import make_plan, parse_parameters
    from zoo.budget.plan_report import print_plan
    from zoo.report.tables import GuardedConsole

    if options["params"] is None:
        raise click.UsageError("Missing option '--params', or '--gpus' for layouts of a recipe.")
    if isnan(options["state_limit"]):
        raise click.BadParameter("nan is not a number of GiB.", param_hint="'--state-limit'")
    times, place = _times(options["times"])
    found = make_plan(
        parse_parameters(options["params"]), context, options["mixers"], base=options["recipe"],
        state_limit=round(options["state_limit"] * 2**30), limit=options["limit"],
    )  # fmt: skip
    print_plan(found, options["batch_size"], times, place, GuardedConsole())


def _lay_out(given: Names, gpus: int, context: int, options: dict[str, Any]) -> None:
    from math import isnan

    from zoo.budget.layout import Room, lay_out, parse_links
    from zoo.budget.layout_report import print_layouts
    from zoo.recipe import load_recipe
    from zoo.report.tables import GuardedConsole

    if options["params"] is not None:
        raise click.UsageError("--params is what a search is for; layouts are of RECIPE as it is.")
    if isnan(options["memory"]) or isnan(options["token_us"] or 0):
        raise click.BadParameter("nan is not a number.", param_hint="'--memory' or '--token-us'")
    if "=" in (given or ("",))[0] and not given[0].endswith((".yaml", ".yml")):
        given = (options["recipe"], *given)
    recipe, *overrides = given or (options["recipe"],)
    loaded = load_recipe(recipe, [*overrides, f"training.context_length={context}"])
    links, (times, _) = parse_links(options["links"]), _times(options["times"])
    token_seconds = None if options["token_us"] is None else 1e-6 * options["token_us"]
    room = Room(round(options["memory"] * 2**30), token_seconds)
    layouts = lay_out(loaded, gpus, links, times, room)
    print_layouts(layouts, (recipe, *overrides), links, room, GuardedConsole())


def _times(path: Path | None) -> "tuple[Times, str]":
    """Return times of an op, and where they are from."""
    from zoo.budget.times import MEASURED, read_times

    return read_times(MEASURED if path is None else path), "one H200" if path is None else str(path)
