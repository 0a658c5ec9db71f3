"""What several commands read from their options."""

import click

__all__ = ["whole_numbers"]


def whole_numbers(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    """Read whole numbers with commas, from 1 on, each once: a callback of options."""
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected whole numbers with commas, such as 1024,4096, was {value!r}") from None
    if min(numbers) < 1:
        raise click.BadParameter(f"expected at least 1, was {min(numbers)}")
    return list(dict.fromkeys(numbers))
