"""Attention of one new token to a cache of keys and values: the op, and its kernel for a GPU (`split`)."""

from zoo.kernels.cache_attention.op import cache_attention, supports_cache_attention

__all__ = ["cache_attention", "supports_cache_attention"]
