"""The symmetric power of a vector: which monomials a state holds, and in which order.

A state row belongs to one non-decreasing index tuple `(i_1 <= ... <= i_p)` of key channels, in lexicographic order, so
there are `D = C(K + p - 1, p)` rows. Keys enter as plain monomials `m(k)`; the multinomial coefficients `c` belong to
the query, and `sum_a c_a m(q)_a m(k)_a = (q . k)^p`.

The order makes the expansion recursive. The tuples that start with `i` are `i` followed by every tuple of degree
`p - 1` whose first index is at least `i`, and in lexicographic order those are a suffix of all tuples of degree
`p - 1`. So a monomial of degree `p` is one channel times one monomial of degree `p - 1` (`Level.first`, `Level.rest`).

Source: Gelada, Buckman, Zhang, Bach, "Scaling Context Requires Rethinking Attention", arXiv 2507.04239, section 3.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Level", "coefficient_array", "coefficients", "expand", "expand_by", "levels", "state_size"]


class Level(NamedTuple):
    """One step of the recursion, from the monomials of degree `n - 1` to those of degree `n`; both int64 `[D_n]`."""

    first: Tensor  # the tuple's first channel
    rest: Tensor  # the row of degree n - 1 that holds the other channels


def state_size(K: int, p: int, *, offset: bool = False) -> int:
    """Rows `D` of a packed state: the distinct monomials of degree `p` in `K` channels, in one more with an offset."""
    size, K = 1, K + 1 if offset else K  # no sum with a bool, which torch 2.11 doesn't trace
    for i in range(p):  # the binomial coefficient, in steps that a symbolic K can take
        size = size * (K + i) // (i + 1)
    return size


# The tables are kept as arrays, not tensors: a tensor made while a model is being traced or under inference mode would
# be the wrong kind of tensor for the next caller.
@lru_cache(maxsize=64)
def _level_arrays(K: int, p: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    tables = []
    for degree in range(2, p + 1):
        lower = state_size(K, degree - 1)
        # Degree - 1 tuples whose first index is at least i are the last `count` rows.
        counts = [state_size(K - i, degree - 1) for i in range(K)]
        first = np.repeat(np.arange(K), counts)
        rest = np.concatenate([np.arange(lower - count, lower) for count in counts])
        tables.append((first, rest))
    return tuple(tables)


def levels(K: int, p: int, device: torch.device) -> tuple[Level, ...]:
    """Index tables for degrees 2 to `p` (none for `p = 1`)."""
    return tuple(
        Level(torch.from_numpy(first).to(device), torch.from_numpy(rest).to(device))
        for first, rest in _level_arrays(K, p)
    )


def _multinomial(index_tuple: Sequence[int]) -> int:
    """Number of distinct orderings of `index_tuple`."""
    orderings = math.factorial(len(index_tuple))
    for multiplicity in Counter(index_tuple).values():
        orderings //= math.factorial(multiplicity)
    return orderings


@lru_cache(maxsize=64)
def coefficient_array(K: int, p: int) -> np.ndarray:
    """Multinomial coefficients of the packed layout, float64."""
    return np.array(
        [_multinomial(index_tuple) for index_tuple in combinations_with_replacement(range(K), p)], np.float64
    )


def coefficients(K: int, p: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Multinomial coefficients `c [D]` of the packed layout."""
    return torch.from_numpy(coefficient_array(K, p)).to(device, dtype, copy=True)


def expand(x: Tensor, p: int) -> Tensor:
    """Monomials of degree `p`: `[..., K]` to `[..., D]`, out of place, so that autograd can go through it twice."""
    return expand_by(x, levels(x.shape[-1], p, x.device))


def expand_by(x: Tensor, tables: tuple[Level, ...]) -> Tensor:
    """Monomials by the tables that `levels` gives."""
    monomials = x
    for first, rest in tables:
        monomials = x[..., first] * monomials[..., rest]
    return monomials
