"""Orders of rows: each undoes the other, and consecutive rows are whole groups."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.blocks.rows import RowOrder

ORDERS = st.builds(RowOrder, st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple))


@settings(deadline=None)
@given(order=ORDERS, share=st.integers(1, 3))
def test_rows_by_group_are_those_by_kind(order: RowOrder, share: int) -> None:
    order = order._replace(groups=share * order.groups)
    rows = torch.randn(order.groups * sum(order.sizes), 2)
    by_group = order.by_group(rows)
    assert torch.equal(order.by_kind(by_group), rows)
    kinds = rows.T.split([order.groups * size for size in order.sizes], -1)
    for kind, found in zip(kinds, order.kinds(by_group.T), strict=True):
        assert torch.equal(found.flatten(-2), kind)
    first = order.kinds(by_group[: len(rows) // share].T)  # of a process that has some of the groups
    for part, found in zip(first, order.kinds(by_group.T), strict=True):
        assert torch.equal(part, found[:, : order.groups // share])
