"""`zoo plan`."""

from pathlib import Path

import click

from zoo.cli.options import Names, names, token_count

__all__ = ["plan"]


@click.command()
@click.option(
    "--params", required=True, help="Parameters, for example 124M, 1.3B or 350000000; K, M and B are thousands."
)
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
def plan(
    params: str,
    context: int,
    times: Path | None,
    mixers: Names | None,
    recipe: str,
    batch_size: int,
    limit: int,
    state_limit: float,
) -> None:
    """Find models of a size whose work divides evenly between weights and state at a context.

    Mixer, power, head width, layers and width vary. Below the table is a line for each model: put `zoo train` or
    `zoo show` before it, and it is trained or shown as planned, at that context. Nothing is allocated.

    \b
    Examples:
      zoo plan --params 124M --context 65536
      zoo plan --params 1.3B --context 8K --mixers softmax,power,gated-power --batch-size 64
    """
    from math import isnan

    from zoo.budget.plan import make_plan, parse_parameters
    from zoo.budget.plan_report import print_plan
    from zoo.budget.times import MEASURED, read_times
    from zoo.report.tables import GuardedConsole

    if isnan(state_limit):
        raise click.BadParameter("nan is not a number of GiB.", param_hint="'--state-limit'")
    measured = read_times(MEASURED if times is None else times)
    found = make_plan(
        parse_parameters(params), context, mixers, base=recipe, state_limit=round(state_limit * 2**30), limit=limit
    )
    place = "one H200" if times is None else str(times)
    print_plan(found, batch_size, measured, place, GuardedConsole())
