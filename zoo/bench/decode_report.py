"""What `zoo bench decode` found: a table, what distance costs, and a plot."""

from collections.abc import Callable, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from zoo.bench.decode import DecodeBenchmark, DecodeMeasurement
from zoo.bench.entrant import OUT_OF_MEMORY
from zoo.bench.op_report import describe_place
from zoo.bench.timing import Ceilings
from zoo.report.numbers import milliseconds

__all__ = ["describe_decode", "draw_decode", "print_decode"]


def describe_decode(benchmark: DecodeBenchmark, ceilings: Ceilings) -> str:
    """What was measured, and where."""
    recipe, dtype = benchmark.recipe, str(benchmark.dtype).removeprefix("torch.")
    states = "made-up states" if benchmark.prefill is None else f"prompts read {benchmark.prefill:,} tokens at a time"
    return (
        f"{describe_place(str(benchmark.device))}\n"
        f"{recipe.name}: {recipe.model.layers} layers, width {recipe.model.width}, {dtype}; decoding, {states}\n"
        f"ceiling in this run: copy {ceilings.copy / 1e12:.3g} TB/s"
    )


def print_decode(rows: Sequence[DecodeMeasurement], console: Console) -> None:
    """Print a line for each measurement, who is absent and why, and what distance costs."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("mixer", vertical="bottom")
    for column in ("position", "batch", "ms a\nstep", "tokens\n/s", "x first", "% of\ncopy", "state\nGiB", "peak\nGiB"):
        table.add_column(column, justify="right", vertical="bottom")
    for index, row in enumerate(rows):
        first = next(each.tokens_per_second for each in rows if each.position == row.position)
        table.add_row(*_cells(row, first))
        if index + 1 < len(rows) and rows[index + 1].position != row.position:
            table.add_section()
    console.print(table)
    for row in rows:
        if row.absent:
            console.print(f"{row.mixer} at {row.position:,}: {row.absent}", highlight=False, markup=False)
        elif row.peak_bytes is not None and not row.recorded:
            console.print(f"{row.mixer} at {row.position:,}: not replayed from a CUDA graph", highlight=False)
    for mixer in dict.fromkeys(row.mixer for row in rows):
        times = {row.position: row.seconds for row in rows if row.mixer == mixer and row.seconds is not None}
        if len(times) > 1:
            near, far = min(times), max(times)
            change = f"{times[far] / times[near]:.2f} x that at {near:,}"
            console.print(f"{mixer}: a step at {far:,} takes {change}", highlight=False)


def draw_decode(rows: Sequence[DecodeMeasurement], title: str, format: Literal["png", "svg"]) -> bytes:
    """Return the plot of at least one measurement as a file."""
    from zoo.bench.model_plot import Points, draw_lines

    panels: dict[str, Callable[[DecodeMeasurement], float | None]] = {
        "thousand tokens/s": lambda row: None if row.tokens_per_second is None else row.tokens_per_second / 1e3,
        "% of a copy": lambda row: None if row.copy_share is None else 100 * row.copy_share,
        "peak GiB": lambda row: None if row.peak_bytes is None else row.peak_bytes / 2**30,
    }
    drawn: dict[str, Points] = {}
    for name, value in panels.items():
        for row in rows:
            y = value(row)
            if y is not None:
                drawn.setdefault(name, {}).setdefault(row.mixer, {})[row.position] = y
    return draw_lines(drawn, "tokens before", title, format)


def _cells(row: DecodeMeasurement, first: float | None) -> list[str]:
    place = [row.mixer, f"{row.position:,}", str(row.batch_size)]
    rate, share, state = row.tokens_per_second, row.copy_share, row.state_bytes
    if row.seconds is None or rate is None or share is None or state is None:
        return [*place, "memory" if row.absent == OUT_OF_MEMORY else "failed", *["-"] * 5]
    ratio = "-" if first is None else f"{rate / first:.2f}"
    peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}"
    return [
        *place, milliseconds(row.seconds), f"{rate:,.0f}", ratio, f"{100 * share:.1f}", f"{state / 2**30:.3f}", peak,
    ]  # fmt: skip
