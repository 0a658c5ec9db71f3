"""How a run is stopped that is to go on later."""

__all__ = ["Paused"]


class Paused(Exception):  # noqa: N818 (no error: a run waits for others)
    """Raised out of a run's training by what watches its progress; what was saved stays."""
