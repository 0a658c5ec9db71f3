"""Ops of several kinds, each by several implementations: the tables of `zoo bench delta` and `zoo bench packed`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console

from zoo.bench.engine import Benchmark, Row, describe_place
from zoo.bench.subjects import BOTH, FORWARD, Case, Contestant, Subject
from zoo.bench.timing import Timer
from zoo.report.numbers import known, milliseconds, short_length
from zoo.report.tables import plain_table

__all__ = ["SideBySide"]


@dataclass(frozen=True)
class SideBySide(Benchmark):
    """What is measured, and how: all entrants of an op in turn, at each length and head width."""

    case: Case
    ops: Mapping[str, Sequence[Contestant]]
    """By name of the op; the first entrant is the one that the others are told beside."""
    lengths: tuple[int, ...]
    head_widths: tuple[int, ...]
    timer: Timer
    graph: bool = False  # whether the timer replays CUDA graphs

    name_column = "entrant"
    columns = (
        "op", "head_width", "entrant", "tokens", "passes", "seconds", "fast_seconds", "slow_seconds", "peak_bytes",
        "absent", "batch_size", "heads", "dtype",
    )  # fmt: skip

    def constants(self) -> Mapping[str, Any]:
        return {
            "batch_size": self.case.batch_size,
            "heads": self.case.heads,
            "dtype": str(self.case.dtype).removeprefix("torch."),
        }

    def title(self) -> str:
        how = "CUDA-graph replays" if self.graph else "launches included"
        B, H, dtype = self.constants().values()
        return f"{describe_place(self.case.device)}\nB = {B}, H = {H}, {dtype}, {how}, medians in ms"

    def rows(self, say: Callable[[str], None]) -> Iterator[Row]:
        for op, entrants in self.ops.items():
            for head_width in self.head_widths:
                subjects = [Subject(entrant, self.case._replace(head_width=head_width)) for entrant in entrants]
                for tokens in self.lengths:
                    for subject in subjects:
                        for passes in (FORWARD, BOTH):
                            row = subject.measure(tokens, passes, self.timer)
                            more = {**row.more, "op": op, "head_width": head_width}
                            yield Row(row.name, row.tokens, row.timing, row.absent, more)

    def report(self, rows: Sequence[Row], console: Console) -> None:
        """Print a table for each op, width and pass, and who is absent from it and why."""
        for (op, head_width, passes), group in groupby(sorted(rows, key=self._place), self._place):
            console.print(f"\n{list(self.ops)[op]}, K = V = {head_width}, {passes}", style="bold", highlight=False)
            _print_table(list(group), console)

    def _place(self, row: Row) -> tuple[int, int, str]:
        return list(self.ops).index(row["op"]), row["head_width"], row["passes"]  # forward comes first


def _print_table(rows: Sequence[Row], console: Console) -> None:
    first = rows[0].name
    beside = {row.tokens: row.seconds for row in rows if row.name == first}
    table = plain_table("tokens", "entrant", "ms", "20%", "80%", f"x {first}", "peak MiB", words=2)
    for row in rows:
        if row.timing is not None:
            table.add_row(
                short_length(row.tokens), row.name, *map(milliseconds, row.timing),
                known(row.seconds, ".2f", beside.get(row.tokens)), known(row["peak_bytes"], ",.0f", 2**20),
            )  # fmt: skip
    if table.row_count:
        console.print(table)
    for name, absent in dict.fromkeys((row.name, row.absent) for row in rows if row.absent):
        console.print(f"{name}: {absent}", highlight=False, markup=False)
