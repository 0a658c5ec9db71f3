"""Run `zoo bench op`: measure, and tell what was found while it is found."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rich.console import Console

from zoo.bench.op import OpBenchmark, OpMeasurement, measure_op
from zoo.bench.op_report import describe, print_tables, recording
from zoo.bench.timing import Ceilings, Timer
from zoo.errors import InputError
from zoo.report.files import replace_file
from zoo.report.numbers import milliseconds

__all__ = ["check_files", "run_op_benchmark"]


def check_files(csv_path: Path | None, plot_path: Path | None) -> None:
    """Refuse what could not be written, before anything is measured.

    Raises:
        InputError: a folder, or a file in none, a plot that is neither PNG nor SVG, or matplotlib is not installed.
    """
    for name, path in (("csv", csv_path), ("plot", plot_path)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise InputError(f"{name}: expected a file in a folder that exists, was {str(path)!r}")
    if plot_path is None:
        return
    if plot_path.suffix not in (".png", ".svg"):
        raise InputError(f"plot: expected a file name that ends in .png or .svg, was {plot_path.name!r}")
    if find_spec("matplotlib") is None:
        raise InputError("plot: needs matplotlib, which is not installed: pip install 'mixer-zoo[plots]'")


def run_op_benchmark(
    benchmark: OpBenchmark,
    timer: Timer,
    ceilings: Ceilings,
    *,
    console: Console,
    progress: Console,
    graph: bool = False,
    csv_path: Path | None = None,
    plot_path: Path | None = None,
) -> list[OpMeasurement]:
    """Measure, print the tables of each head width as soon as it is done, and write the files that are asked for.

    Args:
        benchmark: what to measure.
        timer: how.
        ceilings: what shares are of.
        console: where the tables go.
        progress: is told of every measurement.
        graph: whether the timer replays CUDA graphs, which is only told.
        csv_path: where each measurement is written as soon as it is made.
        plot_path: a file in PNG or SVG.

    Raises:
        InputError: see `check_files`.
    """
    check_files(csv_path, plot_path)
    title = describe(benchmark, ceilings, graph=graph)
    console.print(title, highlight=False)

    def say(text: str) -> None:
        progress.print(text, highlight=False)

    found: list[OpMeasurement] = []
    with recording(benchmark, csv_path) as record:
        for head_width in benchmark.head_widths:
            rows = []
            for row in measure_op(benchmark, head_width, timer, ceilings, say):
                record(row)
                rows.append(row)
                if row.seconds is not None:
                    place = f"K={row.head_width} p={row.p} T={row.tokens} {row.passes}"
                    say(f"{place} {row.contestant}: {milliseconds(row.seconds)} ms")
            print_tables(rows, console)
            found += rows
    if csv_path is not None:
        console.print(f"\nCSV: {csv_path}", highlight=False)
    if plot_path is not None:
        _write_plot(found, title, plot_path, console)
    return found


def _write_plot(found: list[OpMeasurement], title: str, path: Path, console: Console) -> None:
    from zoo.bench.op_plot import draw_times

    if all(row.seconds is None for row in found):
        console.print("plot: there is no time to draw")
        return
    format: Literal["png", "svg"] = "svg" if path.suffix == ".svg" else "png"
    replace_file(path, draw_times(found, title.partition("\nceilings")[0], format))
    console.print(f"plot: {path}", highlight=False)
