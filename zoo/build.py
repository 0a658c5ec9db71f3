"""The former home of `zoo.builder`, whose module does not share its name with the function `zoo.build`."""

from zoo.builder import build, configure, shrink

__all__ = ["build", "configure", "shrink"]
