"""The tiled layout of a state on the GPU, and its index tables.

A tile is `(one outer monomial of degree p - 1) x (INNER neighbouring channels)`: the operand of a matrix product is a
register tile of q or k scaled by one number a token, for every p. Outer monomials are sorted by their last channel, so
those that belong to inner block b (last channel not after the block) are a prefix of all, and block b's tiles are
`prefix(b)` tiles one after the other. A monomial whose last channels share a block occurs more than once; the weight of
a tile makes up for it: with m of its p channels in the inner block, `p / m` times the outer monomial's coefficient.

The gradient for x of `sum m(x) S y` needs every channel with every outer monomial, since S is a symmetric tensor:
`dx_j = p sum_r c_r m_r(x) (S_(r, j) y)` over outer monomials r. Rows that stand in no tile of r are found elsewhere by
`symmetric`, unless one inner block holds all channels (p <= 2, K <= INNER), where every tile is whole.

With an offset, keys have one more channel, a constant. Its monomials stand behind the tiles: of p = 2 the K channels
times it, and then, for every p, the constant's own, which with rows of zeros fills a tile: with rows that 16 does not
divide, states would stand where they cannot be read 16 bytes at a time. Gradients of these rows are carried as they
are, not over coefficients.
"""

from functools import lru_cache
from itertools import accumulate, combinations_with_replacement, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.kernels.power.expansion import coefficient_array, state_size
from zoo.kernels.power.triton.monomials import CONSTANT_ROWS
from zoo.kernels.registration import register_op

__all__ = ["Layout", "Tables", "make_layout", "read_tables"]


class Layout(NamedTuple):
    """The tiled layout of degree p in K channels with inner blocks of `inner` channels."""

    K: int
    p: int
    inner: int
    prefixes: tuple[int, ...]  # outer monomials of each inner block
    offset: bool = False  # whether the constant channel's monomials stand behind them

    @property
    def outers(self) -> int:
        """Outer monomials."""
        return self.prefixes[-1]

    @property
    def rows(self) -> int:
        """Rows of a tiled state."""
        return sum(self.prefixes) * self.inner + self.lower

    @property
    def lower(self) -> int:
        """Rows behind the tiles, of lower degree in the K channels."""
        return state_size(self.K + 1, self.p - 1) + self.padding if self.offset else 0

    @property
    def padding(self) -> int:
        """Rows of zeros, the last ones."""
        return CONSTANT_ROWS.value - 1 if self.offset else 0

    @property
    def whole(self) -> bool:
        """Whether one inner block holds all channels."""
        return self.inner == self.K

    @property
    def even(self) -> bool:
        """Whether each tiled row counts once in the inner product of a state and its gradient."""
        return self.whole and self.p <= 2


@lru_cache
def make_layout(K: int, p: int, inner: int, *, offset: bool = False) -> Layout:
    """The layout for keys of width K."""
    prefixes = tuple(state_size((block + 1) * inner, p - 1) for block in range(K // inner))
    return Layout(K, p, inner, prefixes, offset)


def _carried_coefficients(K: int, p: int, *, offset: bool) -> np.ndarray:
    """What packed gradients of states are divided by in the tiled layout `[D]`."""
    if not offset:
        return coefficient_array(K, p)
    constant = np.array([channels[-1] == K for channels in combinations_with_replacement(range(K + 1), p)])
    return np.where(constant, 1.0, coefficient_array(K + 1, p))


class Tables(NamedTuple):
    """The index tables of a layout: int32, or float32 for weights."""

    channels: Tensor  # of each outer monomial [p - 1, outers]
    symmetric: Tensor  # the row that holds each channel times each outer monomial [K, outers]
    packed: Tensor  # the packed row of each tiled row [rows]
    unpacked: Tensor  # one tiled row of each packed row [D]
    weights: Tensor  # of each tile [K / inner, outers]
    gradient_weights: Tensor  # coefficients of the outer monomials [outers]
    # Where an outer monomial's last channel comes once more: one over how often it is then there [outers].
    last_shares: Tensor
    row_weights: Tensor  # how often each tiled row counts in the inner product of a state and its gradient [rows]
    carried: Tensor  # what packed gradients of states are divided by in the tiled layout [D]


def read_tables(layout: Layout, device: torch.device) -> Tables:
    """The layout's tables on a device."""
    kind = layout.K, layout.p, layout.inner, layout.offset
    integers, weights, parts = power_indices(*kind, device), power_weights(*kind, device), _arrays(*kind)
    # Not by `split`: some versions of the compiler can neither keep what a list holds nor make it again.
    found = {
        name: whole[start:end]
        for whole, names in ((integers, _INTEGERS), (weights, _FLOATS))
        for name, (start, end) in zip(
            names, pairwise(accumulate((parts[name].size for name in names), initial=0)), strict=True
        )
    }
    return Tables(**found)


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
def _arrays(K: int, p: int, inner: int, offset: bool) -> dict[str, np.ndarray]:
    outers = _colexicographic(K, p - 1)
    lower = coefficient_array(K, p - 1) if p > 1 else np.ones(1)
    if p > 1:
        lower = lower[_ranks(outers, np.array(list(combinations_with_replacement(range(K), p - 1))), K)]
    last = outers[:, -1] if p > 1 else np.zeros(1, np.int64)
    starts, weights, row_weights, parts = [], [], [], []
    rows = 0
    for block in range(K // inner):
        prefix = int((last < (block + 1) * inner).sum())
        inside = 1 + (outers // inner == block).sum(1)
        weights.append(np.where(np.arange(len(outers)) < prefix, lower * p / inside, 0))
        row_weights.append(np.repeat(weights[-1][:prefix], inner))
        channels = np.arange(block * inner, (block + 1) * inner)
        parts.append(np.concatenate([np.repeat(outers[:prefix], inner, 0), np.tile(channels, prefix)[:, None]], 1))
        starts.append(rows)
        rows += prefix * inner
    padding = 0
    if offset:
        lower_tuples = np.array([(*channels, K) for channels in combinations_with_replacement(range(K + 1), p - 1)])
        parts.append(lower_tuples)
        row_weights.append(np.ones(len(lower_tuples)))
        rows, padding = rows + len(lower_tuples), CONSTANT_ROWS.value - 1
    packed_tuples = np.array(list(combinations_with_replacement(range(K + offset), p)), np.int64)
    packed = _ranks(np.sort(np.concatenate(parts), 1), packed_tuples, K + offset)
    unpacked = np.empty(len(packed_tuples), np.int64)
    unpacked[packed] = np.arange(rows)
    packed = np.pad(packed, (0, padding))

    # Every outer monomial with every channel: as it stands if it has a tile, else with its last channel inside.
    joined = np.concatenate([np.repeat(outers, K, 0), np.tile(np.arange(K), len(outers))[:, None]], 1)
    swapped = np.where((joined[:, -1] // inner < np.repeat(last, K) // inner)[:, None], np.sort(joined, 1), joined)
    outer = _ranks(swapped[:, :-1], outers, K) if p > 1 else np.zeros(K, np.int64)
    channel = swapped[:, -1]
    symmetric = np.array(starts)[channel // inner] + outer * inner + channel % inner
    return {
        "channels": outers.T.astype(np.int32),
        "weights": np.stack(weights).astype(np.float32),
        "gradient_weights": lower.astype(np.float32),
        "last_shares": 1 / (1 + (outers == last[:, None]).sum(1, dtype=np.float32)),
        "row_weights": np.concatenate(row_weights).astype(np.float32),
        "carried": _carried_coefficients(K, p, offset=offset).astype(np.float32),
        "symmetric": symmetric.reshape(len(outers), K).T.astype(np.int32),
        "packed": packed,
        "unpacked": unpacked,
    }


_INTEGERS = ("channels", "symmetric", "packed", "unpacked")
_FLOATS = ("weights", "gradient_weights", "last_shares", "row_weights", "carried")


@lru_cache(maxsize=128)
def _on_device(
    names: tuple[str, ...], dtype: torch.dtype, device: torch.device, K: int, p: int, inner: int, offset: bool
) -> Tensor:
    arrays = _arrays(K, p, inner, offset)
    return torch.from_numpy(np.concatenate([arrays[name].ravel() for name in names])).to(device, dtype)


# An op for each: what an op gives as a tuple the compiler can neither keep for the backward pass nor make again there.
@register_op("power_indices")
def power_indices(K: int, p: int, inner: int, offset: bool, device: torch.device) -> Tensor:
    """The index tables one after the other, on a device, where they stay: traced, they would be copied to it each time.

    A clone, because an op's output is the caller's. Of equal calls, as layers make them, the compiler keeps one.
    """
    return _on_device(_INTEGERS, torch.int32, device, K, p, inner, offset).clone()


@torch.library.register_fake("zoo::power_indices")
def _(K: int, p: int, inner: int, offset: bool, device: torch.device) -> Tensor:
    return torch.empty(_count(_INTEGERS, K, p, inner, offset=offset), dtype=torch.int32, device=device)


@register_op("power_weights")
def power_weights(K: int, p: int, inner: int, offset: bool, device: torch.device) -> Tensor:
    """The tables of weights, as `power_indices`."""
    return _on_device(_FLOATS, torch.float32, device, K, p, inner, offset).clone()


@torch.library.register_fake("zoo::power_weights")
def _(K: int, p: int, inner: int, offset: bool, device: torch.device) -> Tensor:
    return torch.empty(_count(_FLOATS, K, p, inner, offset=offset), dtype=torch.float32, device=device)


def _count(names: tuple[str, ...], K: int, p: int, inner: int, *, offset: bool) -> int:
    arrays = _arrays(K, p, inner, offset)
    return sum(arrays[name].size for name in names)
