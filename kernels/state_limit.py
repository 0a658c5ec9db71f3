"""How large a state may be, which mixers check before anything is allocated."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["largest_state", "state_limit"]

_bytes_per_head = 64 * 2**20


@contextmanager
def state_limit(bytes_per_head: int) -> Iterator[None]:
    """Raise (or lower) the largest allowed state, in bytes a head; 64 MiB by default."""
    global _bytes_per_head
    previous, _bytes_per_head = _bytes_per_head, bytes_per_head
    try:
        yield
    finally:
        _bytes_per_head = previous


def largest_state() -> int:
    """Bytes a head that are allowed."""
    return _bytes_per_head
