"""What `zoo bench model` found: a table, what compiling brings, and a CSV file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from zoo.bench.csv_file import csv_rows
from zoo.bench.entrant import OUT_OF_MEMORY
from zoo.bench.model import ModelBenchmark, ModelMeasurement
from zoo.bench.op_report import describe_place, milliseconds, short_length
from zoo.bench.timing import Ceilings
from zoo.training.optimizer import autocast_dtype

__all__ = ["describe", "print_summary", "print_table", "recording"]


def describe(benchmark: ModelBenchmark, ceilings: Ceilings) -> str:
    """What was measured, and where."""
    recipe, dtype = benchmark.recipe, autocast_dtype(benchmark.recipe.training, benchmark.device)
    precision = "float32" if dtype is None else f"{str(dtype).removeprefix('torch.')} autocast"
    passes = "forward, backward and optimiser" if benchmark.optimize else "forward and backward"
    return (
        f"{describe_place(str(benchmark.device))}\n"
        f"{recipe.name}: {recipe.model.layers} layers, width {recipe.model.width}, {precision}; training steps of "
        f"about {benchmark.step_tokens:,} tokens, {passes}\n"
        f"ceiling in this run: bfloat16 product {ceilings.matmul / 1e12:.3g} TFLOP/s"
    )


@contextmanager
def recording(path: Path | None, row: type, **options: object) -> Iterator[Callable[[object], None]]:
    """Open a CSV file, and return what writes a measurement, a dataclass `row`, into it at once; None: nothing."""
    with csv_rows(path, [*options, *(field.name for field in fields(row))]) as write:
        yield lambda measurement: write(options | asdict(measurement))  # type: ignore[call-overload]


def print_table(rows: Sequence[ModelMeasurement], console: Console) -> None:
    """Print a line for each measurement, at each length beside the first mixer that has a time there."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("mixer")
    heads = ("tokens", "batch", "ms", "tokens\n/s", "us/\ntoken", "x first", "% of\nmatmul", "peak\nGiB")
    for column in heads:
        table.add_column(column, justify="right", vertical="bottom")
    for index, row in enumerate(rows):
        table.add_row(*_cells(row, _first(rows, row)))
        if index + 1 < len(rows) and rows[index + 1].tokens != row.tokens:
            table.add_section()
    console.print(table)
    notes = {"selective": "* keeps inputs of layers and outputs of mixing ops", "full": "** keeps inputs of layers"}
    for mode in dict.fromkeys(row.checkpointing for row in rows):
        if mode in notes:
            console.print(f"{notes[mode]}, and computes the rest again", highlight=False)


def print_summary(rows: Sequence[ModelMeasurement], console: Console) -> None:
    """Say who is absent and why, what compiling brings, and how the time of a token changes with the length."""
    for row in rows:
        if row.absent:
            place = f"{_name(row)} at T = {row.tokens:,}"
            console.print(f"{place}: {row.absent}", highlight=False, markup=False)
    times = {(row.mixer, row.tokens, row.compiled): row.seconds for row in rows if row.seconds is not None}
    for (mixer, tokens, compiled), seconds in times.items():
        eager = times.get((mixer, tokens, False))
        if compiled and eager is not None:
            console.print(f"{mixer} at T = {tokens:,}: compiled is {eager / seconds:.2f} x eager", highlight=False)
    for mixer in dict.fromkeys(row.mixer for row in rows):
        rates = {row.tokens: row.tokens_per_second for row in rows if row.mixer == mixer and row.compiled}
        known = {tokens: rate for tokens, rate in sorted(rates.items()) if rate is not None}
        if len(known) > 1:
            short, long = min(known), max(known)
            change = f"{known[short] / known[long]:.2f} x that at {short_length(short)}"
            console.print(f"{mixer}: a token at T = {short_length(long)} takes {change}", highlight=False)


def _first(rows: Sequence[ModelMeasurement], like: ModelMeasurement) -> float | None:
    """The rate that others at this length, compiled alike, are compared with."""
    alike = (row for row in rows if (row.tokens, row.compiled) == (like.tokens, like.compiled))
    first = next(alike)
    return first.tokens_per_second


def _cells(row: ModelMeasurement, first: float | None) -> list[str]:
    place = [_name(row), short_length(row.tokens), str(row.batch_size)]
    rate, share = row.tokens_per_second, row.model_flops_share
    if row.seconds is None or rate is None or share is None:
        reason = "-" if not row.absent else "memory" if row.absent.startswith(OUT_OF_MEMORY) else "failed"
        return [*place, reason, *["-"] * 5]
    peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.1f}"
    ratio = "-" if first is None else f"{rate / first:.2f}"
    return [
        *place, milliseconds(row.seconds), f"{rate:,.0f}", f"{1e6 / rate:.3f}", ratio, f"{100 * share:.1f}", peak,
    ]  # fmt: skip


def _name(row: ModelMeasurement) -> str:
    mark = {"none": "", "selective": " *", "full": " **"}[row.checkpointing]
    return f"{row.mixer}{'' if row.compiled else ' eager'}{mark}"
