"""Monomials in tiles: the layout that the chunked implementation works in, and its way to the packed one.

The packed layout has no duplicates, but gathering its rows costs more than the products that use them. A tile is
`(block of channels) x (all monomials of degree p - 1 from that block on)`, an outer product of contiguous rows.
Monomials whose first two channels share a block occur more than once; their coefficient is shared among them, so sums
over tiles are the sums over packed rows. At K = 32 this holds 640 rows for D = 528 at p = 2.

The gradient of `y = sum_a c_a m_a(x) S_a` uses the full product instead of the tiles: with S as a symmetric tensor,
`dx_i = p sum_r c_r m_r(x) (S_(i, r) . dy)` over monomials r of degree p - 1, which is one matrix product of
`S [K, D' V]` with the outer product `m(x) (x) dy [D' V, C]` and needs no scatter.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.kernels.power.expansion import coefficient_array, state_size

__all__ = ["Tiles", "Workspace", "add_gradient", "add_query", "add_update", "tiled_rows", "tiles"]

# Elements of the largest temporary of `add_gradient`: 1 MiB in float32.
_PRODUCT_ELEMENTS = 2**18


class Workspace:
    """Named buffers that are reused: a fresh allocation of a few MiB costs more in page faults than the work in it."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor of `shape`, valid until the same name is asked for again."""
        size = int(np.prod(shape))
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self.buffers[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return buffer[:size].view(shape)


def _block(K: int, p: int) -> int:
    """Channels of a tile: wide ones are few, but from p = 3 on most of their rows are copies, which cost products, and
    digits, for equal terms are rounded alike."""
    return 8 if p <= 2 else min(8, max(2, K // 8))


class _Tile(NamedTuple):
    channels: slice  # of x
    lower: slice  # rows of degree p - 1 that start at or after these channels
    rows: slice  # of degree p


def _tile_rows(K: int, p: int, block: int) -> list[_Tile]:
    """The tiles of degree p, in order."""
    result, start = [], 0
    for channel in range(0, K, block):
        channels = slice(channel, min(channel + block, K))
        total = _rows(K, p - 1, block)
        lower = slice(total - _rows(K - channel, p - 1, block), total)
        stop = start + (channels.stop - channel) * (lower.stop - lower.start)
        result.append(_Tile(channels, lower, slice(start, stop)))
        start = stop
    return result


def tiled_rows(K: int, p: int) -> int:
    """Rows of the tiled layout of degree p in K channels."""
    return _rows(K, p, _block(K, p))


@lru_cache(maxsize=256)
def _rows(channels: int, p: int, block: int) -> int:
    """Rows of the last channels, in blocks of so many."""
    if p <= 1:
        return channels if p == 1 else 1
    return sum(
        min(block, channels - start) * _rows(channels - start, p - 1, block) for start in range(0, channels, block)
    )


@lru_cache(maxsize=64)
def _tuples(K: int, p: int, block: int) -> np.ndarray:
    """The channels of every tiled row `[rows, p]`, in the order in which they were multiplied."""
    if p == 1:
        return np.arange(K)[:, None]
    lower = _tuples(K, p - 1, block)
    parts = []
    for tile in _tile_rows(K, p, block):
        channels = np.arange(tile.channels.start, tile.channels.stop)
        rest = lower[tile.lower]
        parts.append(
            np.concatenate([np.repeat(channels, len(rest))[:, None], np.tile(rest, (len(channels), 1))], axis=1)
        )
    return np.concatenate(parts)


def _ranks(tuples: np.ndarray, K: int, p: int) -> np.ndarray:
    """Packed rows of the given index tuples, in any order of channels."""
    weights = K ** np.arange(p - 1, -1, -1, dtype=np.int64)
    packed = np.array(list(combinations_with_replacement(range(K), p))) @ weights
    return np.searchsorted(packed, np.sort(tuples, axis=1) @ weights)


@lru_cache(maxsize=64)
def _tables(K: int, p: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    packed = _ranks(_tuples(K, p, block), K, p)
    D = state_size(K, p)
    copies = np.bincount(packed, minlength=D)
    coefficients = (coefficient_array(K, p) / copies)[packed]
    unpacked = np.empty(D, np.int64)
    unpacked[packed] = np.arange(len(packed))
    if p == 1:
        return packed, unpacked, coefficients, np.arange(K), np.ones(1)
    lower = _tuples(K, p - 1, block)
    joined = np.concatenate([np.repeat(np.arange(K), len(lower))[:, None], np.tile(lower, (K, 1))], axis=1)
    lower_coefficients = _tables(K, p - 1, block)[2] * p
    return packed, unpacked, coefficients, unpacked[_ranks(joined, K, p)], lower_coefficients


class Tiles(NamedTuple):
    """The tiled layout of degree p in K channels, and its index tables."""

    K: int
    p: int
    block: int  # channels of a tile
    rows: int
    lower_rows: int  # D', rows of degree p - 1
    tiles: list[_Tile]
    packed: Tensor  # [rows], the packed row of each tiled row
    unpacked: Tensor  # [D], one tiled row of each packed row
    coefficients: Tensor  # [rows], multinomial coefficients shared among copies
    symmetric: Tensor  # [K * lower_rows], the tiled row of (i, r)
    lower_coefficients: Tensor  # [lower_rows, 1], p times the coefficients of degree p - 1


def tiles(K: int, p: int, dtype: torch.dtype, device: torch.device) -> Tiles:
    """The tiled layout for keys of width K."""
    block = _block(K, p)
    packed, unpacked, coefficients, symmetric, lower = _tables(K, p, block)
    index = [torch.from_numpy(x).to(device) for x in (packed, unpacked, symmetric)]
    weights = [torch.from_numpy(x).to(device, dtype, copy=True) for x in (coefficients, lower)]
    return Tiles(
        K, p, block, len(packed), len(lower), _tile_rows(K, p, block), index[0], index[1], weights[0],
        symmetric=index[2], lower_coefficients=weights[1][:, None],
    )  # fmt: skip


def _outer(x: Tensor, lower: Tensor, tile: _Tile, out: Tensor) -> Tensor:
    """The monomials of one tile `[n, rows, C]`, written to `out`."""
    channels, rest = x[:, tile.channels, None], lower[:, None, tile.lower]
    torch.mul(channels, rest, out=out.view(x.shape[0], channels.shape[1], rest.shape[2], x.shape[2]))
    return out


def _lower(x: Tensor, layout: Tiles, workspace: Workspace) -> Tensor:
    """Monomials of degree p - 1 `[n, D', C]` (p >= 2)."""
    monomials = x
    for degree in range(2, layout.p):
        out = workspace(f"degree {degree}", x.shape[0], _rows(layout.K, degree, layout.block), x.shape[2])
        for tile in _tile_rows(layout.K, degree, layout.block):
            _outer(x, monomials, tile, out[:, tile.rows])
        monomials = out
    return monomials


def _monomials(x: Tensor, layout: Tiles, workspace: Workspace) -> Iterator[tuple[slice, Tensor]]:
    """The tiles of `m(x)` one after the other: their rows and `[n, rows, C]`, each valid until the next."""
    if layout.p == 1:
        yield slice(0, layout.K), x
        return
    lower = _lower(x, layout, workspace)
    for tile in layout.tiles:
        out = workspace("tile", x.shape[0], tile.rows.stop - tile.rows.start, x.shape[2])
        yield tile.rows, _outer(x, lower, tile, out)


def add_query(y: Tensor, x: Tensor, state: Tensor, layout: Tiles, workspace: Workspace) -> None:
    """`y [n, V, C] += state (c * m(x))`, for x `[n, K, C]` and a tiled state `[n, V, rows]`."""
    weighted = torch.mul(state, layout.coefficients, out=workspace("weighted", *state.shape))
    for rows, monomials in _monomials(x, layout, workspace):
        y.baddbmm_(weighted[:, :, rows], monomials)


def add_update(state: Tensor, x: Tensor, values: Tensor, layout: Tiles, workspace: Workspace) -> None:
    """`state [n, V, rows] += values m(x)^T`, for x `[n, K, C]` and values `[n, V, C]`."""
    for rows, monomials in _monomials(x, layout, workspace):
        part = state[:, :, rows]
        part += torch.bmm(values, monomials.mT, out=workspace("update", *part.shape))


def add_gradient(dx: Tensor, x: Tensor, values: Tensor, state: Tensor, layout: Tiles, workspace: Workspace) -> None:
    """`dx [n, K, C] +=` gradient of `values . state (c * m(x))` for x; values `[n, V, C]`, state `[n, V, rows]`."""
    n, V, C = values.shape
    if layout.p == 1:
        dx.baddbmm_(state.mT, values)
        return
    by_row = workspace("by row", n, layout.rows, V).copy_(state.mT)
    symmetric = workspace("symmetric", n, layout.K * layout.lower_rows, V)
    symmetric = torch.index_select(by_row, 1, layout.symmetric, out=symmetric).view(n, layout.K, layout.lower_rows, V)
    symmetric.mul_(layout.lower_coefficients)
    lower = _lower(x, layout, workspace)
    step = max(1, _PRODUCT_ELEMENTS // (n * V * C))
    for start in range(0, layout.lower_rows, step):
        part = lower[:, start : start + step]
        product = workspace("product", n, part.shape[1], V, C)
        torch.mul(part[:, :, None], values[:, None], out=product)
        dx.baddbmm_(symmetric[:, :, start : start + step].flatten(2), product.flatten(1, 2))
