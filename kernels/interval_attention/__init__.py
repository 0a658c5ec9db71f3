"""Softmax attention of queries that each see one interval of keys: documents in a row, windows, a cache and more.

`api` is the function, `blocks` its form for CPUs, an op that the compiler leaves alone, `flex` the one for GPUs.
"""

from zoo.kernels.interval_attention.api import interval_attention

__all__ = ["interval_attention"]
