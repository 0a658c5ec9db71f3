"""In which order rows of projections stand, and how those of an earlier order are taken.

Rows of queries, keys, values and the like stand by group of heads, so that any share of the groups is consecutive rows.
In earlier versions they stood by kind: all queries, then all keys and so on.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["ROWS", "OrderedRows", "RowOrder", "is_in_order", "order_rows"]

ROWS = 2
"""How often rows were put in order so far: 0, all stood by kind; 1, those of `QueryKeyValue` stood by key head."""


class RowOrder(NamedTuple):
    """So many groups of heads, and in each so many rows of each kind."""

    groups: int
    sizes: tuple[int, ...]

    def by_group(self, x: Tensor) -> Tensor:
        """Order rows `[rows, ...]` that stand by kind."""
        kinds = x.split([self.groups * size for size in self.sizes])
        return torch.cat([kind.unflatten(0, (self.groups, -1)) for kind in kinds], 1).flatten(0, 1)

    def by_kind(self, x: Tensor) -> Tensor:
        """The inverse of `by_group`."""
        kinds = x.unflatten(0, (self.groups, -1)).split(self.sizes, 1)
        return torch.cat([kind.flatten(0, 1) for kind in kinds])

    def kinds(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each kind `[..., groups, size]` of channels `[..., rows]`, of all groups or of any share of them."""
        return x.unflatten(-1, (-1, sum(self.sizes))).split(self.sizes, -1)


class OrderedRows(nn.Module):
    """A module some of whose children have rows by group; in version 1 of it they stood by kind."""

    _version = 2
    since: ClassVar[int] = 2
    """Which change of order it was, of `ROWS`."""
    row_orders: Mapping[str, RowOrder]
    """By the name of the child."""

    @property
    def is_as_it_was(self) -> bool:
        """Whether both orders are one, as of one group."""
        return all(order.groups == 1 for order in self.row_orders.values())

    @torch.no_grad()
    def initialize(self, std: float) -> None:
        """Order what was drawn by kind, so that a seed draws each head what it drew in version 1."""
        for name, order in self.row_orders.items():
            for parameter in self.get_submodule(name).parameters():
                parameter.copy_(order.by_group(parameter))

    def ordered(self, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return, of tensors by name, those of this module, whose names begin with `prefix`, whose rows are not in
        order, in order.
        """
        found = {}
        for name, order in self.row_orders.items():
            rows = order.groups * sum(order.sizes)
            for key, x in tensors.items():
                if key.startswith(f"{prefix}{name}.") and x.dim() > 0 and len(x) == rows:
                    found[key] = order.by_group(x)
        return found

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        if local_metadata.get("version") == 1:
            state_dict.update(self.ordered(prefix, state_dict))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def order_rows(model: nn.Module, tensors: Mapping[str, Tensor], found: int) -> dict[str, Tensor]:
    """Return tensors by name in the order of `model`, which were written after so many changes of it (`ROWS`).

    tensors: its parameters, or with further names behind theirs what an optimiser keeps of them.
    """
    ordered = dict(tensors)
    for name, module in _not_in_order(model, found).items():
        ordered |= module.ordered(f"{name}." if name else "", tensors)
    return ordered


def is_in_order(model: nn.Module, found: int) -> bool:
    """Whether no rows of `model` have another order than after so many changes of it."""
    return not _not_in_order(model, found)


def _not_in_order(model: nn.Module, found: int) -> dict[str, OrderedRows]:
    modules = {name: module for name, module in model.named_modules() if isinstance(module, OrderedRows)}
    return {name: module for name, module in modules.items() if module.since > found and not module.is_as_it_was}
