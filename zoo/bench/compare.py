"""Contestants side by side: tables as wide as a terminal, who is absent and why, and from where on ours is faster."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from zoo.bench.engine import OUT_OF_MEMORY, Row
from zoo.report.numbers import known, milliseconds, short_length
from zoo.report.tables import plain_table

__all__ = ["crossovers", "groups", "print_comparison", "times"]


def groups(rows: Sequence[Row]) -> Iterator[tuple[tuple[int, int, str], list[Row]]]:
    """Yield head width, power and pass, and the rows of each."""

    def panel(row: Row) -> tuple[int, int, str]:
        return row["head_width"], row["p"], row["passes"]  # forward comes first

    for place, group in groupby(sorted(rows, key=panel), panel):
        yield place, list(group)


def times(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Return milliseconds by contestant and length; absent times leave gaps."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.seconds is not None:
            found.setdefault(row.name, {})[row.tokens] = 1e3 * row.seconds
    return found


def print_comparison(rows: Sequence[Row], console: Console) -> None:
    """Print, for each head width, power and pass, a table, who is absent from it, and from where on ours is faster."""
    said: set[tuple[int, int, str]] = set()
    for (head_width, p, passes), group in groups(rows):
        powers = f", p = {p}" if p else ""
        console.print(f"\nK = V = {head_width}{powers}, {passes}", style="bold", highlight=False)
        console.print(_table(group))
        absences = {(head_width, p, line) for line in _absences(group)}
        for line in [*sorted(line for *_, line in absences - said), *crossovers(group)]:
            console.print(line, highlight=False, markup=False)
        said |= absences


def _table(rows: Sequence[Row]) -> Table:
    """One table: a line for each length, a column for each contestant, then the rates of ours."""
    names = [name for name in _names(rows) if any(row.seconds for row in rows if row.name == name)]
    of_ours = [row for row in rows if row.name == _ours(rows)]
    slow = all((row["flops_per_second"] or 0) < 1e12 for row in of_ours)  # as on a CPU
    rates = {
        "GFLOP\n/s" if slow else "TFLOP\n/s": ("flops_per_second", ".1f", 1e9 if slow else 1e12),
        "% of\nmatmul": ("matmul_share", ".1f", 0.01), "% of\ncopy": ("copy_share", ".1f", 0.01),
        "peak\nMiB": ("peak_bytes", ",.0f", 2**20),
    }  # fmt: skip
    shown = {heading: rate for heading, rate in rates.items() if any(row[rate[0]] is not None for row in of_ours)}
    table = plain_table("tokens", *(name.replace("-", "\n") for name in names), *shown, words=0)
    for tokens in sorted({row.tokens for row in rows}):
        found = {row.name: row for row in rows if row.tokens == tokens}
        ours = found.get(_ours(rows), Row("", tokens))
        cells = (known(ours[column], form, unit) for column, form, unit in shown.values())
        table.add_row(short_length(tokens), *(_cell(found.get(name)) for name in names), *cells)
    return table


def _cell(row: Row | None) -> str:
    if row is None or (row.seconds is None and not row.absent):  # the run was stopped, or it is too long
        return "-"
    if row.seconds is None:
        return "out of\nmemory" if row.absent == OUT_OF_MEMORY else "failed"
    return milliseconds(row.seconds)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.name for row in rows))


def _ours(rows: Sequence[Row]) -> str:
    """The contestant whose work is counted, or else the one called ours; an empty string where there is none."""
    counted = next((row.name for row in rows if row["flops_per_second"] is not None), "")
    return counted or ("ours" if "ours" in _names(rows) else "")


def _absences(rows: Sequence[Row]) -> list[str]:
    """Say once for each contestant why it has no time, or not everywhere; lack of memory is in the table."""
    reasons = {(row.name, row.absent): row for row in reversed(rows) if row.absent}
    missing = {name for name in _names(rows) if not any(row.seconds for row in rows if row.name == name)}
    return [
        f"{name}: {reason}" if name in missing else f"{name} from T = {row.tokens:,} on: {reason}"
        for (name, reason), row in reversed(reasons.items())
        if name in missing or reason != OUT_OF_MEMORY
    ]


def crossovers(rows: Sequence[Row]) -> list[str]:
    """Say of each other contestant of one table from which length on ours is faster."""
    ours, lines = _ours(rows), []
    counted = {row.name for row in rows if row["flops_per_second"]}
    others = [name for name in _names(rows) if name not in {ours, *counted}]
    found = times(rows)
    own = found.get(ours, {})
    for name in others:
        ratios = {tokens: time / own[tokens] for tokens, time in sorted(found.get(name, {}).items()) if tokens in own}
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
