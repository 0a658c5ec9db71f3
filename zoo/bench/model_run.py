"""Run `zoo bench model`: measure, and tell what was found while it is found."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from zoo.bench.cold_start import measure_cold_start
from zoo.bench.model import ModelBenchmark, ModelMeasurement, measure_model
from zoo.bench.model_profile import print_profile, profile_step
from zoo.bench.model_report import describe, print_summary, print_table, recording
from zoo.bench.op_run import check_files
from zoo.bench.timing import Ceilings, Timer
from zoo.bench.training_step import TrainingStep
from zoo.report.files import replace_file
from zoo.report.numbers import milliseconds, short_length

__all__ = ["run_cold_starts", "run_model_benchmark"]


def run_model_benchmark(
    benchmark: ModelBenchmark,
    timer: Timer,
    ceilings: Ceilings,
    *,
    console: Console,
    progress: Console,
    profile: bool = False,
    csv_path: Path | None = None,
    plot_path: Path | None = None,
) -> list[ModelMeasurement]:
    """Measure, print a table, and write the files that are asked for.

    Args:
        benchmark: what to measure.
        timer: how.
        ceilings: what shares are of.
        console: where tables go.
        progress: is told of every measurement.
        profile: also print the kernels of each step that can be timed.
        csv_path: where each measurement is written as soon as it is made.
        plot_path: a file in PNG or SVG.

    Raises:
        InputError: see `check_files`.
    """
    check_files(csv_path, plot_path)
    title = describe(benchmark, ceilings)
    console.print(title, highlight=False)

    def look(mixer: str, compiled: bool, step: TrainingStep) -> None:
        if profile:
            mode = "compiled" if compiled else "eager"
            found = profile_step(step, compiled=compiled)
            print_profile(found, f"{mixer}, T = {short_length(step.recipe.training.context_length)}, {mode}", console)

    rows = []
    with recording(csv_path, ModelMeasurement, recipe=benchmark.recipe.name, optimize=benchmark.optimize) as record:
        for row in measure_model(benchmark, timer, ceilings, look):
            record(row)
            rows.append(row)
            if row.seconds is not None and row.first_seconds is not None:
                place = f"{row.mixer}{'' if row.compiled else ' eager'} T={row.tokens} B={row.batch_size}"
                times = f"{milliseconds(row.seconds)} ms, the first step {row.first_seconds:.1f} s"
                progress.print(f"{place}: {times}", highlight=False)
    console.print()
    print_table(rows, console)
    print_summary(rows, console)
    if csv_path is not None:
        console.print(f"CSV: {csv_path}", highlight=False)
    if plot_path is not None:
        _write_plot(rows, title, plot_path, console)
    return rows


def run_cold_starts(benchmark: ModelBenchmark, console: Console) -> None:
    """Print, for each mixer at the first length, the time from the start of a process to its first training step."""
    tokens = benchmark.lengths[0]
    for mixer in benchmark.mixers:
        imported, built, stepped = measure_cold_start(benchmark.at(mixer, tokens), mixer, str(benchmark.device))
        stages = f"import {imported:.1f}, model {built - imported:.1f}, first step {stepped - built:.1f}"
        console.print(f"cold start, {mixer}, T = {tokens:,}: {stepped:.1f} s ({stages})", highlight=False)


def _write_plot(rows: list[ModelMeasurement], title: str, path: Path, console: Console) -> None:
    from zoo.bench.model_plot import draw_model

    if all(row.seconds is None for row in rows):
        console.print("plot: there is no time to draw")
        return
    format: Literal["png", "svg"] = "svg" if path.suffix == ".svg" else "png"
    replace_file(path, draw_model(rows, title.partition("\nceiling")[0], format))
    console.print(f"plot: {path}", highlight=False)
