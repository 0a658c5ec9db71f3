"""The largest sizes that configs take: far beyond any model there is, so that a slip is told by name."""

__all__ = ["LARGEST_VOCABULARY", "LONGEST", "MOST", "MOST_LAYERS", "WIDEST", "WIDEST_HEAD"]

WIDEST = 2**20
"""Channels of the residual stream, of a feed-forward layer, or of a projection of low rank."""

WIDEST_HEAD = 2**16
"""Channels of one head."""

MOST = 2**16
"""Of what a layer has several of: heads, groups of them, widths of the model inside it, tokens that it convolves."""

MOST_LAYERS = 2**12
"""Layers of a model; every one of them is built even where it is only counted."""

LARGEST_VOCABULARY = 2**31 - 1
"""Token ids."""

LONGEST = 2**40
"""Tokens of a context or window, and whatever else training counts."""
