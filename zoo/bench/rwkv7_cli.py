"""`zoo bench rwkv7`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoo.cli.options import whole_numbers

if TYPE_CHECKING:
    from rich.table import Table

    from zoo.bench.rwkv7 import Rwkv7Measurement

__all__ = ["rwkv7"]


@click.command()
@click.option("--lengths", default="4096,16384,65536", show_default=True, callback=whole_numbers)
@click.option("--heads", default=12, show_default=True, type=click.IntRange(1))
@click.option("--head-width", default=64, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(1))
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(["bfloat16", "float16", "float32"]))
@click.option("--device", default="cuda", show_default=True, help="Or cpu, where fla-core cannot run.")
@click.option("--entrants", help="Who takes part, with commas.  [default: all]")
@click.option("--repeats", default=30, show_default=True, type=click.IntRange(1), help="About so many timed runs.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write this CSV file.")
def rwkv7(
    lengths: list[int],
    heads: int,
    head_width: int,
    batch_size: int,
    dtype: str,
    device: str,
    entrants: str | None,
    repeats: int,
    csv_path: Path | None,
) -> None:
    """RWKV-7's op: by fla-core's kernels, beside fla-core called directly, and in PyTorch.

    Entrants: ours (compiled, by fla-core's kernels), direct (fla-core's function under its own autograd, given what
    ours is given), arguments-ready (the same, without making its arguments from those), and chunked (ours in PyTorch).
    The first call of fla-core's kernels searches for block sizes, which takes minutes.

    Example: zoo bench rwkv7 --lengths 4096,65536 --csv rwkv7.csv
    """
    import torch
    from rich.console import Console

    from zoo.bench.entrant import BOTH, FORWARD
    from zoo.bench.op_report import describe_place
    from zoo.bench.rwkv7 import Rwkv7Case, measure_rwkv7, write_rwkv7_csv
    from zoo.bench.timing import gpu_timer, wall_timer
    from zoo.errors import InputError

    on_gpu = device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        raise InputError("device: there is no GPU that torch finds; --device cpu runs without")
    case = Rwkv7Case(batch_size, heads, head_width, getattr(torch, dtype), device)
    names = None if entrants is None else [name.strip() for name in entrants.split(",")]
    console, progress = Console(), Console(stderr=True)
    console.print(describe_place(device), highlight=False)
    console.print(f"B = {batch_size}, H = {heads}, N = {head_width}, {dtype}, medians in ms", highlight=False)
    rows = []
    for row in measure_rwkv7(case, lengths, gpu_timer(repeats) if on_gpu else wall_timer(repeats), names):
        rows.append(row)
        result = row.absent if row.seconds is None else f"{row.seconds * 1e3:.3f} ms"
        progress.print(f"{row.entrant}, {row.tokens:,} tokens, {row.passes}: {result}", highlight=False)
    for passes in (FORWARD, BOTH):
        console.print(f"\n{passes}", style="bold", highlight=False)
        console.print(_table([row for row in rows if row.passes == passes]))
    for name, absent in dict.fromkeys((row.entrant, row.absent) for row in rows if row.absent):
        console.print(f"{name}: {absent}", highlight=False)
    if csv_path is not None:
        write_rwkv7_csv(rows, csv_path)
        console.print(f"CSV: {csv_path}", highlight=False)


def _table(rows: "Sequence[Rwkv7Measurement]") -> "Table":
    """A line for each entrant and length that ran: time, and how it and its memory compare with fla-core's own."""
    from rich.table import Table

    from zoo.bench.op_report import milliseconds

    times = {(row.entrant, row.tokens): row.seconds for row in rows if row.seconds is not None}
    table = Table("tokens", "entrant", "ms", "20%", "80%", "/ direct", "/ ready", "peak MiB")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        if row.seconds is None or row.fast_seconds is None or row.slow_seconds is None:
            continue
        beside = (times.get((name, row.tokens)) for name in ("direct", "arguments-ready"))
        table.add_row(
            f"{row.tokens:,}",
            row.entrant,
            *(milliseconds(seconds) for seconds in (row.seconds, row.fast_seconds, row.slow_seconds)),
            *("-" if other is None else f"{row.seconds / other:.3f}" for other in beside),
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}",
        )
    return table
