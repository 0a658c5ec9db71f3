"""Long rows of values, made short enough to be looked at."""

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["evenly"]

T = TypeVar("T")


def evenly(values: Sequence[T], at_most: int) -> list[T]:
    """Return at most so many of the values (2 or more), evenly from the first to the last, both among them."""
    if len(values) <= at_most:
        return list(values)
    return [values[round(index * (len(values) - 1) / (at_most - 1))] for index in range(at_most)]
