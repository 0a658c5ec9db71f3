"""Softmax attention of queries that each see one interval of keys: documents packed in a row, or a cache and more.

`api` is the function, `blocks` its form for CPUs, an op that the compiler leaves alone.
"""

from zoo.kernels.interval_attention.api import interval_attention

__all__ = ["interval_attention"]
