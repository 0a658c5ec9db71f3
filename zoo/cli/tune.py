"""`zoo tune`: measure block sizes for this GPU, and write them into the table."""

from itertools import product
from pathlib import Path

import click

from zoo.cli.options import Numbers, whole_numbers

__all__ = ["tune"]


@click.command()
@click.option("--head-width", "widths", default="64,128", show_default=True, callback=whole_numbers, help="K = V.")
@click.option("--power", "powers", default="1,2", show_default=True, callback=whole_numbers)
@click.option(
    "--dtype", "dtypes", default="bfloat16", show_default=True, help="bfloat16, float16 or float32, with commas."
)
@click.option("--tokens", default=65536, show_default=True, type=click.IntRange(1024), help="A sequence's length.")
@click.option("--heads", default=8, show_default=True, type=click.IntRange(1))
@click.option("--kernels", help="Those to choose sizes for, with commas: sums,high_outputs.  [default: all]")
@click.option(
    "--table", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The CSV file that gets the rows.  [default: the one that the kernels read]",
)  # fmt: skip
def tune(
    widths: Numbers, powers: Numbers, dtypes: str, tokens: int, heads: int, kernels: str | None, table: Path | None
) -> None:
    """Measure block sizes of power attention's kernels on this GPU.

    Writes a row a case into the table that every call looks its sizes up in; what has no row takes the nearest. A case
    takes a few minutes; kernels are compiled side by side, one a core.

    Example: zoo tune --head-width 64 --power 2
    """
    import torch

    from zoo.kernels.power.supported import POWERS, TUNED, WIDTHS
    from zoo.kernels.triton_support import DTYPES, TRITON

    names = tuple(str(dtype).removeprefix("torch.") for dtype in DTYPES)
    wanted, chosen = dtypes.split(","), kernels.split(",") if kernels else []
    for option, found, allowed in (
        ("--head-width", widths, WIDTHS), ("--power", powers, POWERS), ("--dtype", wanted, names),
        ("--kernels", chosen, TUNED),
    ):  # fmt: skip
        for value in found:
            if value not in allowed:
                raise click.BadParameter(f"{option}: expected one of {', '.join(map(str, allowed))}, was {value}")
    if not TRITON or not torch.cuda.is_available():
        raise click.ClickException("zoo tune needs a GPU and the package triton")

    from zoo.kernels.power.triton.configs import TABLE
    from zoo.kernels.power.triton.tune import Case
    from zoo.report.tables import GuardedConsole
    from zoo.tuning import tune_case

    console = GuardedConsole()
    for dtype, width, p in product(wanted, widths, powers):
        console.print(f"[bold]{dtype}, K = V = {width}, p = {p}[/bold]")
        case = Case(dtype, width, width, p, "triton")
        tune_case(case, tokens, heads, chosen, table or TABLE, console.print)
