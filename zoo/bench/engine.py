"""The engine of every benchmark: rows as they are measured, in a terminal and a CSV file, then as tables and a plot."""

import gc
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from rich.console import Console

from zoo.bench.timing import Timing
from zoo.report.files import check_outputs
from zoo.report.numbers import milliseconds
from zoo.report.tables import csv_rows, plain_table
from zoo.training.memory import is_out_of_memory

if TYPE_CHECKING:
    from zoo.report.plots import Panel

__all__ = [
    "OUT_OF_MEMORY", "Benchmark", "Row", "attempt", "describe_place", "first_line", "print_lines",
    "release_memory", "run",
]  # fmt: skip

OUT_OF_MEMORY = "out of memory"
TIMES = ("seconds", "fast_seconds", "slow_seconds")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One subject at one length; without a time it was not run, and `absent` says why unless it is too long for it."""

    name: str
    tokens: int  # of a sequence, or before a step
    timing: Timing | None = None
    absent: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)  # the benchmark's other columns

    @property
    def seconds(self) -> float | None:
        """The median time."""
        return None if self.timing is None else self.timing.median

    def __getitem__(self, column: str) -> Any:
        """Return a column of the benchmark's own, None where the row has none."""
        return self.more.get(column)


class Benchmark(ABC):
    """What is measured, and how it is told."""

    columns: Sequence[str]
    """Of the CSV file; those before the times say what was measured."""
    name_column: str
    """How a row's name is called in the CSV file."""
    tokens_column = "tokens"
    """How its tokens are."""
    shown: Sequence[tuple[str, str, float]] = ()
    """In the plot: title, column and unit of each panel."""

    @abstractmethod
    def title(self) -> str:
        """Return what is measured, and where; a line that starts with `ceiling` is not for plots."""

    @abstractmethod
    def rows(self, say: Callable[[str], None]) -> Iterator[Row]:
        """Yield rows as they are measured; `say` is told what takes long."""

    @abstractmethod
    def report(self, rows: Sequence[Row], console: Console) -> None:
        """Print the tables of at least one row, and what follows from them."""

    def constants(self) -> Mapping[str, Any]:
        """Return the columns that are the same in every row."""
        return {}

    def panels(self, rows: Sequence[Row]) -> "list[list[Panel]]":
        """Return what the plot shows of rows with at least one time: here a panel for each of `shown` that is known."""
        from zoo.report.plots import Panel

        panels = []
        for title, column, unit in self.shown:
            lines: dict[str, dict[int, float]] = {}
            for row in rows:
                if row[column] is not None:
                    name = row.name if row["compiled"] is not False else f"{row.name}, eager"
                    lines.setdefault(name, {})[row.tokens] = row[column] / unit
            panels += [Panel(title, lines)] if lines else []
        return [panels]

    def values(self, row: Row) -> dict[str, Any]:
        """Return a row by column."""
        times = dict(zip(TIMES, row.timing or (), strict=False))
        place = {self.name_column: row.name, self.tokens_column: row.tokens, "absent": row.absent}
        known = {**self.constants(), **row.more, **times, **place}
        return {column: known.get(column) for column in self.columns}


def run(
    benchmark: Benchmark, *, console: Console, progress: Console, csv_path: Path | None = None,
    plot_path: Path | None = None,
) -> list[Row]:  # fmt: skip
    """Measure, print what was found, also by a run that is stopped, and write the files that are asked for.

    Tables go to `console`; `progress` is told of every row, which is in the CSV file as soon as it is measured.

    Raises:
        InputError: see `check_outputs`.
    """
    check_outputs(csv=csv_path, plot=plot_path)
    title = benchmark.title()
    console.print(title, highlight=False)

    def say(text: str) -> None:
        progress.print(text, highlight=False, markup=False, soft_wrap=True)

    found: list[Row] = []
    try:
        with csv_rows(csv_path, benchmark.columns) as write:
            for row in benchmark.rows(say):
                write(benchmark.values(row))
                found.append(row)
                if row.seconds is not None:
                    first = "" if row["first_seconds"] is None else f", the first step {row['first_seconds']:.1f} s"
                    say(f"{_place(benchmark, row)}: {milliseconds(row.seconds)} ms{first}")
    finally:
        if found:
            benchmark.report(found, console)
    if csv_path is not None:
        console.print(f"CSV: {csv_path}", highlight=False)
    if plot_path is not None:
        _plot(benchmark, found, title, plot_path, console)
    return found


def print_lines(
    headings: Sequence[str], rows: Sequence[Row], cells: Callable[[Row, Row], list[str]], console: Console
) -> None:
    """Print a line for each row, given with the first one of its length and mode, and a rule between lengths."""
    table = plain_table(*headings)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        first = next(each for each in rows if (each.tokens, each["compiled"]) == (row.tokens, row["compiled"]))
        table.add_row(*cells(row, first), end_section=following is not None and following.tokens != row.tokens)
    console.print()
    console.print(table)


def _place(benchmark: Benchmark, row: Row) -> str:
    """What a row is of: the columns before its times that differ by row."""
    values, constants = benchmark.values(row), benchmark.constants()
    places = benchmark.columns[: benchmark.columns.index("seconds")]
    return " ".join(f"{column}={values[column]}" for column in places if column not in constants)


def _plot(benchmark: Benchmark, rows: Sequence[Row], title: str, path: Path, console: Console) -> None:
    from zoo.report.plots import draw_panels, write_plot

    if all(row.seconds is None for row in rows):
        console.print("plot: there is no time to draw")
        return
    heading = "\n".join(line for line in title.splitlines() if not line.startswith("ceiling"))
    axis = "tokens" if benchmark.tokens_column == "tokens" else "tokens before"
    write_plot(path, lambda: draw_panels(benchmark.panels(rows), axis, heading))
    console.print(f"plot: {path}", highlight=False)


def attempt(measure: Callable[[], Result], device: torch.device) -> tuple[Result | None, str]:
    """Return what `measure` returns and no reason, or None and in one line why it cannot run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return measure(), ""
        except Exception as error:
            reason = _reason(error, [str(warning.message) for warning in caught])
    # Only here, without the error, are its frames gone, which hold tensors.
    gc.collect()
    if reason == OUT_OF_MEMORY and device.type == "cuda":
        torch.cuda.empty_cache()
    return None, reason


def _reason(error: BaseException, warned: list[str]) -> str:
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if "No available kernel" in str(error):
        # What an attention backend has against the inputs comes as warnings, among those about the ones switched off.
        causes = [text for text in warned if "not used because" not in text and "runtime disabled" not in text]
        if causes:
            return first_line(RuntimeError(causes[0].partition(" (Triggered")[0]))
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Return what an error says, as one line of at most 160 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 160 else f"{lines[0][:159]}…"


def release_memory(device: torch.device) -> None:
    """Drop compiled graphs and cached memory, so that what comes next starts as if it were alone."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def describe_place(device: str) -> str:
    """The device's name, and the versions of what computes on it."""
    if not device.startswith("cuda"):
        return f"{device}; torch {torch.__version__}, {torch.get_num_threads()} threads"
    import triton

    runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"
    versions = f"torch {torch.__version__}, Triton {triton.__version__}, {runtime}"
    return f"{torch.cuda.get_device_name(device)}; {versions}"
