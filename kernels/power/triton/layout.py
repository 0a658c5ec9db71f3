"""The tiled layout of a state on the GPU, and its index tables.

A tile is `(one outer monomial of degree p - 1) x (INNER neighbouring channels)`: the operand of a matrix product is a
register tile of q or k scaled by one number a token, for every p. Outer monomials are sorted by their last channel, so
those that belong to inner block b (last channel not after the block) are a prefix of all, and block b's tiles are
`prefix(b)` tiles one after the other. A monomial whose last channels share a block occurs more than once; the weight of
a tile makes up for it: with m of its p channels in the inner block, `p / m` times the outer monomial's coefficient.

The gradient for x of `sum m(x) S y` needs every channel with every outer monomial, since S is a symmetric tensor:
`dx_j = p sum_r c_r m_r(x) (S_(r, j) y)` over outer monomials r. Rows that stand in no tile of r are found elsewhere by
`rows`, unless one inner block holds all channels (p <= 2, K <= INNER), where every tile is whole.
"""

from functools import lru_cache
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.kernels.power.expansion import coefficient_array, state_size

__all__ = ["Layout", "layout"]


class Layout(NamedTuple):
    """The tiled layout of degree p in K channels with inner blocks of `inner` channels."""

    inner: int
    outers: int  # outer monomials
    rows: int  # of a tiled state
    whole: bool  # one inner block holds all channels
    channels: Tensor  # int32 [p - 1, outers], the channels of each outer monomial
    prefixes: tuple[int, ...]  # outer monomials of each inner block
    weights: Tensor  # float32 [K / inner, outers]
    gradient_weights: Tensor  # float32 [outers]
    symmetric: Tensor  # int32 [outers, K], the row that holds each outer monomial times each channel
    packed: Tensor  # int64 [rows], the packed row of each tiled row
    unpacked: Tensor  # int64 [D], one tiled row of each packed row


def _colexicographic(K: int, degree: int) -> np.ndarray:
    """Non-decreasing tuples sorted by their last channel, then the one before, and so on `[outers, degree]`."""
    if degree == 0:
        return np.zeros((1, 0), np.int64)
    tuples = np.array(list(combinations_with_replacement(range(K), degree)), np.int64)
    return tuples[np.lexsort(tuples.T)]


def _keys(tuples: np.ndarray, K: int) -> np.ndarray:
    """One number for each tuple, the same for the same tuple."""
    return tuples @ (K ** np.arange(tuples.shape[1], dtype=np.int64))


def _ranks(tuples: np.ndarray, among: np.ndarray, K: int) -> np.ndarray:
    """Positions of tuples in another array of them."""
    keys = _keys(among, K)
    order = np.argsort(keys)
    return order[np.searchsorted(keys[order], _keys(tuples, K))]


@lru_cache(maxsize=64)
def _arrays(K: int, p: int, inner: int) -> tuple[tuple[int, ...], dict[str, np.ndarray]]:
    outers = _colexicographic(K, p - 1)
    lower = coefficient_array(K, p - 1) if p > 1 else np.ones(1)
    if p > 1:
        lower = lower[_ranks(outers, np.array(list(combinations_with_replacement(range(K), p - 1))), K)]
    last = outers[:, -1] if p > 1 else np.zeros(1, np.int64)
    starts, prefixes, weights, parts = [], [], [], []
    rows = 0
    for block in range(K // inner):
        prefix = int((last < (block + 1) * inner).sum())
        inside = 1 + (outers // inner == block).sum(1)
        weights.append(np.where(np.arange(len(outers)) < prefix, lower * p / inside, 0))
        channels = np.arange(block * inner, (block + 1) * inner)
        parts.append(np.concatenate([np.repeat(outers[:prefix], inner, 0), np.tile(channels, prefix)[:, None]], 1))
        starts.append(rows)
        prefixes.append(prefix)
        rows += prefix * inner
    packed_tuples = np.array(list(combinations_with_replacement(range(K), p)), np.int64)
    packed = _ranks(np.sort(np.concatenate(parts), 1), packed_tuples, K)
    unpacked = np.empty(state_size(K, p), np.int64)
    unpacked[packed] = np.arange(rows)

    # Every outer monomial with every channel: as it stands if it has a tile, else with its last channel inside.
    joined = np.concatenate([np.repeat(outers, K, 0), np.tile(np.arange(K), len(outers))[:, None]], 1)
    swapped = np.where((joined[:, -1] // inner < np.repeat(last, K) // inner)[:, None], np.sort(joined, 1), joined)
    outer = _ranks(swapped[:, :-1], outers, K) if p > 1 else np.zeros(K, np.int64)
    channel = swapped[:, -1]
    symmetric = np.array(starts)[channel // inner] + outer * inner + channel % inner
    return tuple(prefixes), {
        "channels": outers.T.astype(np.int32),
        "weights": np.stack(weights).astype(np.float32),
        "gradient_weights": lower.astype(np.float32),
        "symmetric": symmetric.reshape(len(outers), K).astype(np.int32),
        "packed": packed,
        "unpacked": unpacked,
    }


@lru_cache(maxsize=64)
def _on_device(K: int, p: int, inner: int, device: torch.device) -> Layout:
    prefixes, arrays = _arrays(K, p, inner)
    tables = {name: torch.from_numpy(array).contiguous().to(device) for name, array in arrays.items()}
    rows = arrays["packed"].shape[0]
    return Layout(inner, arrays["symmetric"].shape[0], rows, inner == K, prefixes=prefixes, **tables)


def layout(K: int, p: int, inner: int, device: torch.device) -> Layout:
    """The layout, with its tables on a device, where they stay."""
    return _on_device(K, p, inner, device)
