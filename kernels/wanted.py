"""Sizes that calls take for a while in place of their own, so that they can be measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["Wanted"]

Sizes = TypeVar("Sizes")


class Wanted(Generic[Sizes]):
    """Holds what every call of a kind of kernels shall take, in all threads."""

    def __init__(self) -> None:
        self.sizes: Sizes | None = None
        """None: what each call chooses by itself."""

    @contextmanager
    def using(self, sizes: Sizes) -> Iterator[None]:
        """Let every call take these sizes."""
        before, self.sizes = self.sizes, sizes
        try:
            yield
        finally:
            self.sizes = before
