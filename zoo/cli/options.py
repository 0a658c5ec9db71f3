"""Options that several commands share."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = [
    "Folder",
    "Names",
    "Numbers",
    "csv_option",
    "names",
    "output_option",
    "plot_option",
    "rates",
    "token_count",
    "token_counts",
    "whole_numbers",
]

Names = tuple[str, ...]
Numbers = tuple[int, ...]
_TOKENS = {"": 1, "K": 2**10, "M": 2**20}


class Folder(click.Path):
    """The path of a folder; nothing at all, as an unset variable of a shell gives it, is not the current one."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("expected the name of a folder, was ''; the current one is .", param, ctx)
        return super().convert(value, param, ctx)


def output_option(name: str, help: str) -> Callable[[Any], Any]:
    """Return an option that names a file to be written, `-` for standard output."""
    kind = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
    return click.option(f"--{name}", f"{name}_path", type=kind, help=f"{help}, or - for standard output.")


csv_option = output_option("csv", "Also write this CSV file")
plot_option = output_option("plot", "Also draw this PNG or SVG")


def rates(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Read numbers over 0 with commas, each once: a callback of options."""
    if value is None:
        return None
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected numbers with commas, such as 1e-3,4e-3, was {value!r}") from None
    for number in numbers:
        if not 0 < number < math.inf:
            raise click.BadParameter(f"expected numbers over 0, was {number:g}")
    return tuple(dict.fromkeys(numbers))


def whole_numbers(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Numbers | None:
    """Read whole numbers with commas, from 1 on, each once: a callback of options."""
    if value is None:
        return None
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected whole numbers with commas, such as 1024,4096, was {value!r}") from None
    if min(numbers) < 1:
        raise click.BadParameter(f"expected at least 1, was {min(numbers)}")
    return tuple(dict.fromkeys(numbers))


def names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Names | None:
    """Read names with commas: a callback of options."""
    return None if value is None else tuple(name.strip() for name in value.split(","))


def token_count(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    """Read a number of tokens such as 65536 or 64K, which are the same: a callback of options."""
    match = re.fullmatch(r"(\d{1,18})([KM]?)", value.strip(), re.IGNORECASE)
    tokens = int(match[1]) * _TOKENS[match[2].upper()] if match else 0
    if tokens < 1:
        raise click.BadParameter(f"expected a number of tokens from 1 on, such as 65536 or 64K, was {value!r}")
    return tokens


def token_counts(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """Read numbers of tokens with commas, each once: a callback of options."""
    return list(dict.fromkeys(token_count(context, parameter, part) for part in value.split(",")))
