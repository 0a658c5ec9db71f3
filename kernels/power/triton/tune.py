"""Search for block sizes: kernel by kernel, then the chunk, then the length from which chunks pay."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from zoo.kernels.power.supported import TUNED
from zoo.kernels.power.triton.configs import BlockSizes, LaunchSizes, Row, read_table

__all__ = ["Case", "Measure", "trials", "tune", "write_row"]

TIE = 0.01
CHUNKS = {1: (128, 256, 512, 1024), 2: (256, 512, 1024, 2048)}
_BLOCKS = ((128, 32), (128, 64), (64, 32), (64, 64), (32, 32))
_OUTERS = (32, 64, 128)  # outer monomials that are an operand of a product, from p = 3 on
_WARPS = (4, 8)


class Case(NamedTuple):
    """What is tuned."""

    dtype: str
    K: int
    V: int
    p: int
    kernels: str  # "triton", or "hopper" for its own


# Seconds of one kernel, by its name in `BlockSizes`, or of a whole forward and backward pass for "all", at so many
# tokens; infinity where the sizes cannot run.
Measure = Callable[[BlockSizes, str, int], float]


def tuned_kernels(case: Case) -> tuple[str, ...]:
    """The kernels with sizes to choose: Hopper's own have theirs built in, and leave the chunks of wide heads."""
    if case.kernels == "triton":
        return TUNED if case.p > 2 else TUNED[:5]
    if case.K == case.V == 64:
        return ()
    return TUNED[1:5]


def candidates(case: Case, kernel: str) -> Iterator[LaunchSizes]:
    """Sizes worth trying."""
    stages = (2, 3) if case.dtype == "bfloat16" else (1, 2)
    for depth in stages:
        if kernel == "sums" and case.p > 2:
            yield from (
                LaunchSizes(block, outers, warps, depth)
                for block in (32, 64, 128) for outers in _OUTERS[1:] for warps in _WARPS
            )  # fmt: skip
        elif kernel.startswith("high"):
            yield from (
                LaunchSizes(block, outers, warps, depth)
                for block in (64, 128) for outers in _OUTERS for warps in _WARPS
            )  # fmt: skip
        elif kernel == "sums":
            yield from (LaunchSizes(block, 0, 4, depth) for block in (32, 64))
        else:
            yield from (LaunchSizes(*tokens, warps, depth) for tokens in _BLOCKS for warps in _WARPS)


def trials(case: Case, start: BlockSizes, kernel: str) -> tuple[LaunchSizes, ...]:
    """The sizes of a kernel that are tried, those to start with first."""
    return tuple(dict.fromkeys((getattr(start, kernel), *candidates(case, kernel))))


def tune(
    case: Case, start: BlockSizes, kernels: Iterable[str], tokens: int, measure: Measure, say: Callable[[str], None]
) -> BlockSizes:
    """The best sizes found for sequences of so many tokens, from those to start with.

    Each kernel is tuned by itself: the others' sizes do not change its time.
    """
    best = start
    for kernel in kernels:
        before = getattr(best, kernel)
        tried = trials(case, best, kernel)
        times = {launch: measure(best.with_launch(kernel, launch), kernel, tokens) for launch in tried}
        launch = min(times, key=times.__getitem__)
        say(f"{kernel}: {_text(launch)} {1e3 * times[launch]:.3f} ms; {_text(before)} {1e3 * times[before]:.3f} ms")
        best = best.with_launch(kernel, launch)
    chunks = dict.fromkeys((best.chunk, *CHUNKS[min(case.p, 2)]))
    whole = {chunk: measure(best._replace(chunk=chunk, alone=0), "all", tokens) for chunk in chunks}
    # Of chunks that are as fast as makes no difference the longest, whose states take the least memory.
    chunk = max(size for size, time in whole.items() if time <= (1 + TIE) * min(whole.values()))
    say(f"chunk: {chunk} tokens {1e3 * whole[chunk]:.3f} ms; {best.chunk} tokens {1e3 * whole[best.chunk]:.3f} ms")
    alone = _longest_alone(best, chunk, measure)
    say(f"one chunk alone: up to {alone} tokens")
    return best._replace(chunk=chunk, alone=alone)


def _longest_alone(sizes: BlockSizes, chunk: int, measure: Measure) -> int:
    """Up to how many tokens, in whole chunks, one chunk alone is faster than several."""
    alone = chunk
    for chunks in range(2, 9):
        several, one = (
            measure(sizes._replace(chunk=chunk, alone=limit), "all", chunks * chunk) for limit in (0, chunks * chunk)
        )
        if one > several:
            break
        alone = chunks * chunk
    return alone


def _text(launch: LaunchSizes) -> str:
    return "x".join(map(str, launch))


def write_row(path: Path, row: Row) -> None:
    """Put a row into a table, in place of one for the same case; the file is whole at any time."""
    rows = {_key(old): old for old in read_table(path)} | {_key(row): row}
    with path.open(newline="") as file:
        header = file.readline()
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        file.write(header)
        writer = csv.writer(file, lineterminator="\n")
        for key in sorted(rows):
            sizes = rows[key].sizes
            writer.writerow([*key, sizes.chunk, sizes.alone, sizes.outer, *map(_text, sizes.launches)])
    os.replace(partial, path)
    read_table.cache_clear()


def _key(row: Row) -> tuple[str, str, str, int, int, int]:
    return row.architecture, row.kernels, row.dtype, row.K, row.V, row.p
