"""What `zoo bench op` found: tables as wide as a terminal, from where on our op is faster, and a CSV file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from zoo.bench.csv_file import csv_rows
from zoo.bench.entrant import BOTH, FORWARD, OUT_OF_MEMORY
from zoo.bench.op import OpBenchmark, OpMeasurement
from zoo.bench.timing import Ceilings
from zoo.report.numbers import milliseconds, short_length

__all__ = ["crossovers", "describe", "describe_place", "print_tables", "recording"]


def describe(benchmark: OpBenchmark, ceilings: Ceilings, *, graph: bool) -> str:
    """What was measured, and where."""
    dtype = str(benchmark.dtype).removeprefix("torch.")
    return (
        f"{describe_place(benchmark.device)}\n"
        f"B = {benchmark.batch_size}, H = {benchmark.heads}, {'gated' if benchmark.gated else 'ungated'}, {dtype}, "
        f"{'CUDA-graph replays' if graph else 'launches included'}, medians in ms\n"
        f"ceilings in this run: bfloat16 product {ceilings.matmul / 1e12:.0f} TFLOP/s, copy {ceilings.copy / 1e12:.2f} "
        "TB/s"
    )


def describe_place(device: str) -> str:
    """The device's name, and the versions of what computes on it."""
    versions = f"torch {torch.__version__}"
    if not device.startswith("cuda"):
        return f"{device}; {versions}, {torch.get_num_threads()} threads"
    import triton

    runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"
    return f"{torch.cuda.get_device_name(device)}; {versions}, Triton {triton.__version__}, {runtime}"


@contextmanager
def recording(benchmark: OpBenchmark, path: Path | None) -> Iterator[Callable[[OpMeasurement], None]]:
    """Open a CSV file, and return what writes a measurement into it at once, with sizes and options; None: nothing."""
    options = {
        "batch_size": benchmark.batch_size,
        "heads": benchmark.heads,
        "gated": benchmark.gated,
        "dtype": str(benchmark.dtype).removeprefix("torch."),
    }
    with csv_rows(path, [*(field.name for field in fields(OpMeasurement)), *options]) as write:
        yield lambda measurement: write(asdict(measurement) | options)


def print_tables(measurements: Sequence[OpMeasurement], console: Console) -> None:
    """Print, for each head width, power and pass, a table, who is absent from it, and from where on ours is faster."""

    def panel(measurement: OpMeasurement) -> tuple[int, int, bool]:
        return measurement.head_width, measurement.p, measurement.passes == BOTH

    said: set[tuple[int, int, str]] = set()
    for (head_width, p, both), group in groupby(sorted(measurements, key=panel), panel):
        rows = list(group)
        console.print(f"\nK = V = {head_width}, p = {p}, {BOTH if both else FORWARD}", style="bold", highlight=False)
        console.print(_table(rows))
        absences = {(head_width, p, line) for line in _absences(rows)}
        for line in [*sorted(line for *_, line in absences - said), *crossovers(rows)]:
            console.print(line, highlight=False)
        said |= absences


def _table(rows: Sequence[OpMeasurement]) -> Table:
    """One table: a line for each length, a column for each contestant, then the rates of ours."""
    names = [name for name in _names(rows) if any(row.seconds for row in rows if row.contestant == name)]
    ours = _ours(rows)
    has_peak = any(row.peak_bytes is not None for row in rows if row.contestant == ours)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    rates = ["TFLOP\n/s", "% of\nmatmul", "% of\ncopy", *(["peak\nMiB"] if has_peak else [])] if ours else []
    for column in ["tokens", *(name.replace("-", "\n") for name in names), *rates]:
        table.add_column(column, justify="right", vertical="bottom")
    for tokens in sorted({row.tokens for row in rows}):
        found = {row.contestant: row for row in rows if row.tokens == tokens}
        table.add_row(short_length(tokens), *(_cell(found[name]) for name in names), *_rates(found.get(ours), has_peak))
    return table


def _cell(row: OpMeasurement) -> str:
    if row.seconds is None:
        return "-" if not row.absent else "out of\nmemory" if row.absent == OUT_OF_MEMORY else "failed"
    return milliseconds(row.seconds)


def _rates(row: OpMeasurement | None, has_peak: bool) -> list[str]:
    if row is None:
        return []
    if row.flops_per_second is None or row.matmul_share is None or row.copy_share is None:
        return ["-"] * (4 if has_peak else 3)
    rates = [f"{row.flops_per_second / 1e12:.1f}", f"{100 * row.matmul_share:.1f}", f"{100 * row.copy_share:.1f}"]
    return rates if row.peak_bytes is None else [*rates, f"{row.peak_bytes / 2**20:,.0f}"]


def _names(rows: Sequence[OpMeasurement]) -> list[str]:
    return list(dict.fromkeys(row.contestant for row in rows))


def _ours(rows: Sequence[OpMeasurement]) -> str:
    """The contestant whose work is counted; an empty string where there is none."""
    return next((row.contestant for row in rows if row.flops_per_second is not None), "")


def _absences(rows: Sequence[OpMeasurement]) -> list[str]:
    """Say once for each contestant why it has no time, or not everywhere; lack of memory is in the table."""
    reasons = {(row.contestant, row.absent): row for row in reversed(rows) if row.absent}
    missing = {name for name in _names(rows) if not any(row.seconds for row in rows if row.contestant == name)}
    return [
        f"{name}: {reason}" if name in missing else f"{name} from T = {row.tokens:,} on: {reason}"
        for (name, reason), row in reversed(reasons.items())
        if name in missing or reason != OUT_OF_MEMORY
    ]


def crossovers(rows: Sequence[OpMeasurement]) -> list[str]:
    """Say of each other contestant of one table from which length on ours is faster."""
    ours, lines = _ours(rows), []
    others = [name for name in _names(rows) if name not in {row.contestant for row in rows if row.flops_per_second}]
    times = {(row.contestant, row.tokens): row.seconds for row in rows if row.seconds is not None}
    for name in others:
        ratios = {
            tokens: seconds / times[ours, tokens]
            for (contestant, tokens), seconds in sorted(times.items())
            if contestant == name and (ours, tokens) in times
        }
        if not ratios:
            continue
        slower = [tokens for tokens, ratio in ratios.items() if ratio <= 1]
        faster = [tokens for tokens in ratios if tokens > max(slower, default=0)]
        longest = max(ratios)
        if faster:
            lines.append(
                f"{ours} is faster than {name} from T = {min(faster):,} tokens on, "
                f"{ratios[longest]:.1f} times at {short_length(longest)}"
            )
        else:
            lines.append(f"{ours} is not faster than {name} at T = {longest:,} tokens: {ratios[longest]:.2f} times")
    return lines
