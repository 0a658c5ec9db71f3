"""Run `zoo bench decode`: measure, and tell what was found while it is found."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from zoo.bench.decode import DecodeBenchmark, DecodeMeasurement, measure_decode
from zoo.bench.decode_report import describe_decode, draw_decode, print_decode
from zoo.bench.model_report import recording
from zoo.bench.op_run import check_files
from zoo.bench.timing import Ceilings, Timer
from zoo.report.files import replace_file
from zoo.report.numbers import milliseconds

__all__ = ["run_decode_benchmark"]


def run_decode_benchmark(
    benchmark: DecodeBenchmark,
    timer: Timer,
    ceilings: Ceilings,
    *,
    console: Console,
    progress: Console,
    csv_path: Path | None = None,
    plot_path: Path | None = None,
) -> list[DecodeMeasurement]:
    """Measure, print a table, and write the files that are asked for.

    Args:
        benchmark: what to measure.
        timer: how.
        ceilings: what shares are of.
        console: where the table goes.
        progress: is told of every measurement.
        csv_path: where each measurement is written as soon as it is made.
        plot_path: a file in PNG or SVG.

    Raises:
        InputError: see `check_files`.
    """
    check_files(csv_path, plot_path)
    title = describe_decode(benchmark, ceilings)
    console.print(title, highlight=False)
    dtype = str(benchmark.dtype).removeprefix("torch.")
    rows = []
    with recording(csv_path, DecodeMeasurement, recipe=benchmark.recipe.name, dtype=dtype) as record:
        for row in measure_decode(benchmark, timer, ceilings):
            record(row)
            rows.append(row)
            if row.seconds is not None:
                progress.print(f"{row.mixer} at {row.position}: {milliseconds(row.seconds)} ms", highlight=False)
    console.print()
    print_decode(rows, console)
    if csv_path is not None:
        console.print(f"CSV: {csv_path}", highlight=False)
    if plot_path is not None and any(row.seconds is not None for row in rows):
        format: Literal["png", "svg"] = "svg" if plot_path.suffix == ".svg" else "png"
        replace_file(plot_path, draw_decode(rows, title.partition("\nceiling")[0], format))
        console.print(f"plot: {plot_path}", highlight=False)
    return rows
