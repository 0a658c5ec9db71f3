"""Block sizes: a table by GPU, dtype, K, V and p, measured by `zoo tune` and looked up ever after.

There is no search at start-up. What the table lacks takes the sizes of the row that is nearest.
"""

import csv
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from zoo.kernels.errors import InputError
from zoo.kernels.power.supported import check_architecture
from zoo.kernels.wanted import Wanted

__all__ = [
    "TABLE", "BlockSizes", "LaunchSizes", "Row", "architecture", "block_sizes", "read_table", "using", "wanted",
]  # fmt: skip

TABLE = Path(__file__).with_name("blocks.csv")


class LaunchSizes(NamedTuple):
    """Tokens of a program, what it meets at a time, tokens or outer monomials, warps, and stages of the pipeline."""

    block: int
    other: int
    warps: int
    stages: int


class BlockSizes(NamedTuple):
    """All that a call needs to know before it launches."""

    chunk: int  # C, tokens a chunk
    alone: int  # up to so many tokens one chunk takes all: the quadratic form
    outer: int  # outer monomials a program of the sums takes at p = 2: 1, 2 or 4
    sums: LaunchSizes  # tokens at a time, and from p = 3 on a program's outer monomials
    output: LaunchSizes
    query_gradient: LaunchSizes
    key_gradient: LaunchSizes
    value_gradient: LaunchSizes
    high_outputs: LaunchSizes = LaunchSizes(0, 0, 0, 0)  # from p = 3 on: tokens by outer monomials
    high_gradients: LaunchSizes = LaunchSizes(0, 0, 0, 0)
    inner: int = 0  # channels of a tile; not tuned, as the layout of states depends on it

    def with_launch(self, kernel: str, launch: LaunchSizes) -> "BlockSizes":
        """The same but for one kernel, named as a field."""
        return self._replace(**dict[str, Any]({kernel: launch}))

    @property
    def launches(self) -> tuple[LaunchSizes, ...]:
        """As they stand in a row of the table."""
        return (
            self.sums, self.output, self.query_gradient, self.key_gradient, self.value_gradient, self.high_outputs,
            self.high_gradients,
        )  # fmt: skip


class Row(NamedTuple):
    """A row of the table: what it is for, and its block sizes."""

    architecture: str  # sm_90, gfx942
    kernels: str  # "triton", or "hopper" for its own
    dtype: str
    K: int
    V: int
    p: int
    sizes: BlockSizes


def architecture(x: Tensor) -> str:
    """The GPU that x is on; for none, the one that the kernels were made for.

    Raises:
        InputError: the kernels are not for that GPU.
    """
    if x.device.type != "cuda":
        return "sm_90"
    properties = torch.cuda.get_device_properties(x.device)
    if torch.version.hip is None:
        name = f"sm_{properties.major}{properties.minor}"
    else:
        name = str(properties.gcnArchName).partition(":")[0]
    check_architecture(name)
    return name


@lru_cache
def read_table(path: Path) -> tuple[Row, ...]:
    """The rows of a table of block sizes.

    Raises:
        InputError: names the file and the line that is no row.
    """
    with path.open(newline="") as file:
        reader = csv.reader(file)
        next(reader)
        return tuple(_row(line, path, reader.line_num) for line in reader)


def _row(line: list[str], path: Path, number: int) -> Row:
    try:
        gpu, kernels, dtype, K, V, p, chunk, alone, outer, *launches = line
        *low, high_outputs, high_gradients = (LaunchSizes(*map(int, launch.split("x"))) for launch in launches)
        sums, output, query, key, value = low
        sizes = BlockSizes(
            int(chunk), int(alone), int(outer), sums, output, query, key, value,
            high_outputs=high_outputs, high_gradients=high_gradients,
        )  # fmt: skip
        return Row(gpu, kernels, dtype, int(K), int(V), int(p), sizes)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}, line {number}: expected a row of block sizes, was {','.join(line)!r}") from error


def _distance(row: Row, gpu: str, K: int, V: int, p: int) -> tuple[object, ...]:
    """How far a row is from what is wanted, by GPU, then p, then widths; of two the wider, which takes less memory."""
    same_maker = row.architecture.rstrip("0123456789abcdef") == gpu.rstrip("0123456789abcdef")
    generations = abs(_generation(row.architecture) - _generation(gpu)) if same_maker else math.inf
    widths = abs(math.log2(row.K / K)) + abs(math.log2(row.V / V))
    return generations, abs(row.p - p), widths, -max(row.K, row.V)


def _generation(gpu: str) -> int:
    digits = re.search(r"[0-9a-f]+$", gpu)
    return int(digits[0], 16) if digits else 0


@lru_cache
def _look_up(gpu: str, kernels: str, dtype: str, K: int, V: int, p: int) -> BlockSizes:
    rows = [row for row in read_table(TABLE) if (row.kernels, row.dtype) == (kernels, dtype)]
    return min(rows, key=lambda row: _distance(row, gpu, K, V, p)).sizes


_wanted: Wanted[BlockSizes] = Wanted()
using = _wanted.using


def wanted() -> BlockSizes | None:
    """The block sizes that `using` lets every call take, None outside of it."""
    return _wanted.sizes


def block_sizes(x: Tensor, K: int, V: int, p: int, *, hopper: bool) -> BlockSizes:
    """The block sizes for inputs like x with these widths; hopper: for its own kernels."""
    # From p = 3 on the columns of one product of sums are an inner block's channels and values.
    inner = 16 if hopper else K if p <= 2 else min(K // 4, 256 // V)
    if triton.knobs.runtime.interpret:
        launch = LaunchSizes(16, 16, 4, 1)
        high = {"high_outputs": launch, "high_gradients": launch}
        return BlockSizes(32, 64, 2, launch, launch, launch, launch, launch, inner=inner, **high)
    dtype = str(x.dtype).removeprefix("torch.")
    found = _wanted.sizes or _look_up(architecture(x), "hopper" if hopper else "triton", dtype, K, V, p)
    return found._replace(inner=inner)
