"""The errors that the ops raise on purpose; `zoo.errors` re-exports them beside the rest."""

__all__ = ["InputError", "ZooError"]


class ZooError(Exception):
    """Base of every error that the zoo raises on purpose; the command line prints it as one line."""


class InputError(ZooError, ValueError):
    """An argument with a wrong shape, dtype, device or value."""
