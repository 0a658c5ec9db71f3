"""How tensors of a zoo model stand in a file of transformers, read and written without a change of their bits."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.blocks.rows import RowOrder
from zoo.errors import InputError

__all__ = [
    "ByGroup",
    "ByGroupSqueezed",
    "ByGroupTransposed",
    "Ones",
    "Piece",
    "Reshaped",
    "Same",
    "Shared",
    "SharedByHeads",
    "Split",
    "Stacked",
    "Transposed",
    "Zeros",
]


@dataclass(frozen=True)
class Piece(ABC):
    """The tensors `names` of a zoo model, which are made of `sources` of a file; mostly one of one."""

    names: tuple[str, ...]
    sources: tuple[str, ...]

    @abstractmethod
    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        """Return the zoo's tensors, of these shapes, from the file's."""

    @abstractmethod
    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the file's tensors.

        Raises:
            InputError: the file's kind of model cannot hold them.
        """


class Same(Piece):
    """The same tensor under another name."""

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return tensors

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors


class Transposed(Piece):
    """A matrix `[out, in]` that the file has as `[in, out]`."""

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [x.T for x in tensors]

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [x.T.contiguous() for x in tensors]


@dataclass(frozen=True)
class Reshaped(Piece):
    """The same numbers, which the file has in this shape."""

    shape: torch.Size

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [x.reshape(shape) if x.numel() == shape.numel() else x for x, shape in zip(tensors, shapes, strict=True)]

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [x.reshape(self.shape) for x in tensors]


@dataclass(frozen=True)
class Stacked(Piece):
    """Rows of a matrix, each a tensor of this shape in the file."""

    shape: torch.Size

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [torch.stack([x.flatten() for x in tensors])]

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [row.reshape(self.shape) for row in tensors[0]]


@dataclass(frozen=True)
class ByGroup(Piece):
    """Rows by group of heads, where the file has them by kind: each kind in a tensor, or all in one."""

    order: RowOrder

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        rows = torch.cat(list(tensors))
        return [self.order.by_group(rows) if len(rows) == shapes[0][0] else rows]  # of a shape that is refused

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        rows = self.order.by_kind(tensors[0])
        if len(self.sources) == 1:
            return [rows]
        return [part.contiguous() for part in rows.split([self.order.groups * size for size in self.order.sizes])]


class ByGroupSqueezed(ByGroup):
    """`ByGroup` of filters `[C, W]`, one a channel, that the file has as `[C, 1, W]`."""

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return super().read([x.squeeze(1) for x in tensors], shapes)

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [x[:, None] for x in super().write(tensors)]


class ByGroupTransposed(ByGroup):
    """`ByGroup` of a matrix `[out, in]` that the file has as `[in, out]`."""

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return super().read([x.T for x in tensors], shapes)

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [x.T.contiguous() for x in super().write(tensors)]


class Split(Piece):
    """Several tensors that are one of the file, one below the other."""

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        rows = [shape[0] for shape in shapes]
        if len(tensors[0]) != sum(rows):
            return [tensors[0]] * len(rows)  # of a shape that is refused
        return tensors[0].split(rows)

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [torch.cat(list(tensors))]


class Shared(Piece):
    """Tensors that are one and the same of the file."""

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [tensors[0]] * len(shapes)

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        first, *others = tensors
        for name, x in zip(self.names[1:], others, strict=True):
            if not torch.equal(x, first):
                raise InputError(f"{name}: expected the same as {self.names[0]}, which is all that the file holds")
        return [first]


class SharedByHeads(Piece):
    """A weight `[K]` that all heads share, and of which each has its own here, `[H, K]`."""

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [tensors[0].expand(shapes[0])]

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        (x,) = tensors
        if not bool((x == x[0]).all()):
            raise InputError(
                f"{self.names[0]}: expected the same weight for all heads, which is all that the file holds"
            )
        return [x[0].contiguous()]


class Zeros(Piece):
    """A bias that the file's kind of model does not have."""

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [torch.zeros(shapes[0])]

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        if bool(tensors[0].any()):
            raise InputError(f"{self.names[0]}: expected zeros, the file's kind of model has no such bias")
        return []


class Ones(Piece):
    """A norm's weight that the file's kind of model does not have."""

    def read(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [torch.ones(shapes[0])]

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        if not bool((tensors[0] == 1).all()):
            raise InputError(f"{self.names[0]}: expected ones, the file's kind of model has no such weight")
        return []
