"""Softmax attention of queries that each see one interval of keys: documents packed in a row, or a cache and more.

`api` is the function; `flex` its form for GPUs, PyTorch's FlexAttention; `blocks` that for CPUs, an op that the
compiler leaves alone.
"""

from zoo.kernels.interval_attention.api import interval_attention
from zoo.kernels.interval_attention.flex import supports_flex

__all__ = ["interval_attention", "supports_flex"]
