"""`zoo bench state`."""

from pathlib import Path

import click

from zoo.cli.options import whole_numbers

__all__ = ["state"]


@click.command()
@click.option("--steps", default=20_000, show_default=True, type=click.IntRange(1), help="Tokens to decode.")
@click.option("--at", default="1,100,1000,10000,20000", show_default=True, callback=whole_numbers, help="Compare here.")
@click.option("--ops", help="Which ones, with commas, such as p1,gated-p2,rwkv7.  [default: all]")
@click.option("--heads", default=4, show_default=True, type=click.IntRange(1))
@click.option("--head-width", default=16, show_default=True, type=click.IntRange(1), help="K, and V as well.")
@click.option("--batch-size", default=2, show_default=True, type=click.IntRange(1))
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(["bfloat16", "float16", "float32"]))
@click.option("--device", default="cpu", show_default=True, help="For example cuda.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write this CSV file.")
def state(
    steps: int,
    at: list[int],
    ops: str | None,
    heads: int,
    head_width: int,
    batch_size: int,
    dtype: str,
    device: str,
    seed: int,
    csv_path: Path | None,
) -> None:
    """How exact states stay over many decoded tokens, beside float64.

    Each op is stepped in place from an empty state; its output and its float32 state are compared with those of the
    recurrence in float64 on the same inputs, and so is a recurrence in plain float32.

    Example: zoo bench state --steps 20000 --ops p2,gated-p2
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from zoo.bench.state import StateCase, measure_state_error, select_recurrences, write_state_csv

    case = StateCase(batch_size, heads, head_width, getattr(torch, dtype), device)
    chosen = select_recurrences(case, None if ops is None else [name.strip() for name in ops.split(",")])
    positions = sorted({*(position for position in at if position < steps), steps})
    console = Console()
    console.print(
        f"torch {torch.__version__}, {device}; B={batch_size}, H={heads}, K=V={head_width}, {dtype} inputs, float32 "
        "states; relative errors to float64"
    )
    table = Table("op", "token", "output", "plain", "state", "plain")
    for column in table.columns[1:]:
        column.justify = "right"
    errors = []
    for recurrence in chosen:
        for error in measure_state_error(recurrence, positions, seed=seed):
            errors.append(error)
            table.add_row(error.name, f"{error.position:,}", *(f"{value:.1e}" for value in error[2:]))
    console.print(table)
    console.print("plain: the recurrence in float32, its output rounded like the op's")
    if csv_path is not None:
        write_state_csv(errors, csv_path)
        console.print(f"CSV: {csv_path}")
