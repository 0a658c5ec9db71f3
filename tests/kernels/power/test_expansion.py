"""The packed layout, and the tiled layout that the chunked implementation works in."""

import math
from itertools import combinations_with_replacement

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.power import state_size
from zoo.kernels.power.expansion import coefficients, expand, levels
from zoo.kernels.power.tiles import Workspace, add_gradient, add_query, add_update, tiles

CPU = torch.device("cpu")


@st.composite
def widths(draw: st.DrawFn) -> tuple[int, int]:
    """K and p with D up to 500, so that there are tiles that K does not fill."""
    p = draw(st.integers(1, 4))
    return draw(st.integers(1, {1: 40, 2: 30, 3: 13, 4: 9}[p])), p


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(widths())
def test_rows_are_index_tuples_in_lexicographic_order(drawn: tuple[int, int]) -> None:
    K, p = drawn
    tuples = list(combinations_with_replacement(range(K), p))
    assert state_size(K, p) == len(tuples) == math.comb(K + p - 1, p)
    x = normal(K, K)
    expected = torch.stack([x[list(index_tuple)].prod() for index_tuple in tuples])
    torch.testing.assert_close(expand(x, p), expected)
    assert all(len(level.first) == state_size(K, degree) for degree, level in enumerate(levels(K, p, CPU), 2))


@given(widths(), st.integers(0, 99))
def test_monomials_give_the_power_of_the_product(drawn: tuple[int, int], seed: int) -> None:
    K, p = drawn
    q, k = normal(seed, 3, K), normal(seed + 1, 3, K)
    terms = coefficients(K, p, torch.float64, CPU) * expand(q, p) * expand(k, p)
    scale = (q * k).abs().sum(-1) ** p
    assert ((terms.sum(-1) - (q * k).sum(-1) ** p).abs() <= 1e-13 * scale).all()


@given(widths())
def test_tiles_hold_every_packed_row(drawn: tuple[int, int]) -> None:
    K, p = drawn
    layout = tiles(K, p, torch.float64, CPU)
    rows = torch.arange(state_size(K, p))
    assert torch.equal(layout.packed[layout.unpacked], rows)
    assert torch.equal(layout.packed.unique(), rows)
    shared = torch.zeros(len(rows), dtype=torch.float64).index_add(0, layout.packed, layout.coefficients.flatten())
    torch.testing.assert_close(shared, coefficients(K, p, torch.float64, CPU))


@given(widths(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_products_in_tiles_equal_packed_ones(drawn: tuple[int, int], n: int, V: int, C: int, seed: int) -> None:
    K, p = drawn
    layout, workspace = tiles(K, p, torch.float64, CPU), Workspace(torch.float64, CPU)
    x, values = normal(seed, n, K, C).requires_grad_(), normal(seed + 1, n, V, C)
    state, before = normal(seed + 2, n, V, state_size(K, p)), normal(seed + 3, n, V, C)
    monomials = expand(x.mT, p)  # [n, C, D]
    c = coefficients(K, p, torch.float64, CPU)
    tiled = state[:, :, layout.packed]

    y = before.clone()
    add_query(y, x.detach(), tiled, layout, workspace)
    expected = before + state @ (c * monomials).mT
    torch.testing.assert_close(y, expected.detach())

    dx = torch.ones_like(x)
    add_gradient(dx, x.detach(), values, tiled, layout, workspace)
    torch.testing.assert_close(dx, 1 + torch.autograd.grad(expected, x, values)[0])

    updated = tiled.clone()
    add_update(updated, x.detach(), values, layout, workspace)
    torch.testing.assert_close(updated[:, :, layout.unpacked], state + values @ monomials.detach())
    # All copies of a row stay the same.
    torch.testing.assert_close(updated, updated[:, :, layout.unpacked][:, :, layout.packed])
