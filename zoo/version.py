"""The version of the package, for whoever stands below `zoo` itself."""

__all__ = ["__version__"]

__version__ = "0.1.0"
