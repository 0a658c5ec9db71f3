"""The target of a row that does not count, for all who compute losses."""

__all__ = ["IGNORED"]

IGNORED = -100
"""As everywhere in PyTorch."""
