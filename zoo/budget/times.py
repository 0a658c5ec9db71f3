"""What mixing takes on a GPU where it was timed: rows of `zoo bench op --csv`, and what they say of a planned model."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from zoo.budget.plan import Choice
from zoo.errors import InputError
from zoo.reading import read_regular

__all__ = ["MEASURED", "MixingTime", "Timed", "Times", "read_times"]

MEASURED = Path(__file__).with_name("h200.csv")
"""Of one NVIDIA H200, bfloat16; see docs/performance.md."""

_OPS = {
    "softmax": ("power", "softmax-cudnn"),
    "linear": ("power", "power"),
    "gated-linear": ("power", "power"),
    "power": ("power", "power"),
    "gated-power": ("power", "power"),
    "rwkv7": ("rwkv7", "ours"),
}
"""The benchmark's op and contestant of mixers whose heads are `width / heads` wide, keys and values alike."""
_COLUMNS = (
    "op", "contestant", "head_width", "p", "tokens", "passes", "seconds", "flops_per_second", "matmul_share",
    "batch_size", "heads",
)  # fmt: skip


class Timed(NamedTuple):
    """A forward and a backward pass of an op, timed."""

    op: str
    contestant: str
    head_width: int
    p: int
    tokens: int
    seconds: float
    """Of one head of one sequence."""


class MixingTime(NamedTuple):
    """What mixing along time takes of a training step."""

    seconds: float
    """For one sequence of the context, forward and backward, all layers and heads."""
    share: float
    """Its FLOP/s, as they are counted here, over those of large matrix products."""


@dataclass(frozen=True)
class Times:
    """What was timed in one place."""

    rows: tuple[Timed, ...]
    peak: float
    """FLOP/s of large matrix products there."""

    def mixing(self, choice: Choice) -> MixingTime | None:
        """Return what a model's mixing takes at the plan's context, or None where nothing like it was timed.

        See `of_heads`.
        """
        context = choice.budget.context
        seconds = self.of_heads(choice.mixer, choice.p, choice.head_width, context)
        if seconds is None:
            return None
        seconds *= choice.layers * choice.width // choice.head_width
        return MixingTime(seconds, 3 * choice.budget.state_flops * context / seconds / self.peak)

    def of_heads(self, mixer: str, p: int | None, head_width: int, context: int) -> float | None:
        """Return the seconds that mixing takes a head for a sequence, or None where nothing like it was timed.

        The row of the length nearest to the context counts, a token costing what it does there; with softmax, which
        has no state, in proportion to the length.
        """
        op, contestant = _OPS.get(mixer, (None, None))
        alike = [
            row for row in self.rows
            if (row.op, row.contestant, row.head_width) == (op, contestant, head_width)
            and (mixer in ("softmax", "rwkv7") or row.p == (p or 1))
        ]  # fmt: skip
        if not alike:
            return None
        nearest = min(alike, key=lambda row: abs(math.log(row.tokens / context)))
        longer = context / nearest.tokens
        return nearest.seconds * (longer**2 if mixer == "softmax" else longer)


def read_times(path: Path = MEASURED) -> Times:
    """Read a CSV file that `zoo bench op --csv` wrote; any number of them may stand in one file, one after the other.

    Raises:
        InputError: it cannot be read, lacks a column, or nothing of it is a timed forward and backward pass of ours.
    """
    try:
        lines = read_regular(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"times: expected a CSV file of zoo bench op, could not read {str(path)!r}: {error}") from None
    found, peaks = [], []
    for part in _parts(lines):
        table = csv.DictReader(part)
        missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise InputError(f"times: expected the columns of zoo bench op --csv, {str(path)!r} has no {missing[0]!r}")
        try:
            for row in table:
                if row["passes"] == "forward+backward" and row["seconds"]:
                    found.append(_timed(row))
                    if row["matmul_share"]:
                        peaks.append(float(row["flops_per_second"]) / float(row["matmul_share"]))
        except (ValueError, TypeError, ZeroDivisionError):
            raise InputError(f"times: expected numbers in {str(path)!r}, line {table.line_num} has others") from None
    if not peaks:
        raise InputError(f"times: expected a timed forward and backward pass of power attention in {str(path)!r}")
    return Times(tuple(found), sorted(peaks)[len(peaks) // 2])


def _parts(lines: Sequence[str]) -> list[list[str]]:
    """Split where a line of column names stands."""
    starts = [place for place, line in enumerate(lines) if line.startswith("op,")] or [0]
    return [list(lines[start:stop]) for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True)]


def _timed(row: dict[str, str]) -> Timed:
    heads = int(row["batch_size"]) * int(row["heads"])
    return Timed(
        row["op"], row["contestant"], int(row["head_width"]), int(row["p"]), int(row["tokens"]),
        float(row["seconds"]) / heads,
    )  # fmt: skip
