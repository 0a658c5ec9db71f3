"""How one tensor of a zoo model stands in a file of transformers, read and written without a change of its bits."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import InputError

__all__ = ["Joined", "Piece", "Same", "SharedByHeads", "Transposed", "Zeros"]


@dataclass(frozen=True)
class Piece(ABC):
    """The tensor `name` of a zoo model, which is made of `sources` of a file."""

    name: str
    sources: tuple[str, ...]

    @abstractmethod
    def read(self, tensors: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """Return the zoo's tensor, of this shape, from the file's."""

    @abstractmethod
    def write(self, x: Tensor) -> Sequence[Tensor]:
        """Return the file's tensors.

        Raises:
            InputError: the file's kind of model cannot hold it.
        """


class Same(Piece):
    """The same tensor under another name."""

    def read(self, tensors: Sequence[Tensor], shape: torch.Size) -> Tensor:
        return tensors[0]

    def write(self, x: Tensor) -> Sequence[Tensor]:
        return [x]


class Transposed(Piece):
    """A matrix `[out, in]` that the file has as `[in, out]`."""

    def read(self, tensors: Sequence[Tensor], shape: torch.Size) -> Tensor:
        return tensors[0].T

    def write(self, x: Tensor) -> Sequence[Tensor]:
        return [x.T.contiguous()]


@dataclass(frozen=True)
class Joined(Piece):
    """Several tensors one below the other, of so many rows each."""

    rows: tuple[int, ...]

    def read(self, tensors: Sequence[Tensor], shape: torch.Size) -> Tensor:
        return torch.cat(list(tensors))

    def write(self, x: Tensor) -> Sequence[Tensor]:
        return [part.contiguous() for part in x.split(self.rows)]


class SharedByHeads(Piece):
    """A weight `[K]` that all heads share, and of which each has its own here, `[H, K]`."""

    def read(self, tensors: Sequence[Tensor], shape: torch.Size) -> Tensor:
        return tensors[0].expand(shape)

    def write(self, x: Tensor) -> Sequence[Tensor]:
        if not bool((x == x[0]).all()):
            raise InputError(f"{self.name}: expected the same weight for all heads, which is all that the file holds")
        return [x[0].contiguous()]


class Zeros(Piece):
    """A bias that the file's kind of model does not have."""

    def read(self, tensors: Sequence[Tensor], shape: torch.Size) -> Tensor:
        return torch.zeros(shape)

    def write(self, x: Tensor) -> Sequence[Tensor]:
        if bool(x.any()):
            raise InputError(f"{self.name}: expected zeros, the file's kind of model has no such bias")
        return []
