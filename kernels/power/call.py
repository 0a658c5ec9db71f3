"""One call of power attention, whole: what it takes, gives and keeps.

Fields stand in the order in which the ops have them, and nothing else knows that order. A schema can take None and not
return it, so that absent results are empty: of one dimension, which no result that is there has.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from zoo.kernels.power.heads import Heads
from zoo.kernels.precision import accumulation_dtype

__all__ = [
    "Fold", "Gradients", "Incoming", "Inputs", "JournalBlock", "JournalStep", "Options", "Outputs", "Saved", "Step",
    "join_sequences", "or_empty", "present", "take_sequence",
]  # fmt: skip

Group = TypeVar("Group", bound=tuple[Any, ...])


class Inputs(NamedTuple):
    """What a call takes; q, k and v of one dtype."""

    q: Tensor  # [B, T, Hq, K]
    k: Tensor  # [B, T, Hk, K]
    v: Tensor  # [B, T, Hv, V]
    log_g: Tensor | None = None  # [B, T, Hv], float32
    S: Tensor | None = None  # [rows, Hs, D, V], packed, in the accumulation dtype; rows: B, or packed sequences
    z: Tensor | None = None  # [rows, Hs, D]
    offset: Tensor | None = None  # [Hq], in the accumulation dtype
    cu_seqlens: Tensor | None = None  # int32 [rows + 1]

    @property
    def heads(self) -> Heads:
        return Heads(self.q.shape[2], self.k.shape[2], self.v.shape[2])

    def sequences(self) -> Iterator[tuple[int, slice]]:
        """Each packed sequence's row of the state, and its tokens."""
        assert self.cu_seqlens is not None
        ends = self.cu_seqlens.tolist()
        return ((i, slice(ends[i], ends[i + 1])) for i in range(len(ends) - 1))


class Options(NamedTuple):
    """What is computed, how, and what comes back beside the output."""

    p: int
    scale: float
    normalize: bool
    use_triton: bool = False
    chunk_size: int = 0  # 0 chooses
    return_state: bool = False
    save_states: bool = False  # for the backward pass, which otherwise computes them again; Triton only
    save_output: bool = False  # with all digits, which the gradient of a normalised output needs


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass."""

    o: Tensor  # [B, T, Ho, V] in the accumulation dtype, empty if not normalised
    denominator: Tensor  # as in `Outputs`, like the rest
    states: Tensor
    gates: Tensor


class Outputs(NamedTuple):
    """What the forward pass gives; empty what is not asked for."""

    o: Tensor  # [B, T, Ho, V]
    denominator: Tensor  # [B, T, Ho] in the accumulation dtype, if normalised
    S: Tensor  # as in `Inputs`, after the last token
    z: Tensor
    states: Tensor  # between chunks [slots, Hs, rows (V + 1)], in a layout of their own; Triton only
    gates: Tensor  # summed in chunks [slots, Hs, C], float32; Triton only
    exact: Tensor  # o in the accumulation dtype, if o is not in it

    def saved(self, options: Options) -> Saved:
        """What is kept of it for the backward pass."""
        o = self.o if present(self.exact) is None else self.exact
        return Saved(o if options.normalize else or_empty(None, self.o), self.denominator, self.states, self.gates)


class Incoming(NamedTuple):
    """Gradients of results: of o, and of the state after the last token."""

    do: Tensor
    dS: Tensor | None  # noqa: N815 - the state's gradient
    dz: Tensor | None


class Gradients(NamedTuple):
    """Gradients of inputs, empty for absent ones."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor
    S: Tensor
    z: Tensor
    offset: Tensor


class Step(NamedTuple):
    """One decoded token's call; S and z are updated in place."""

    q: Tensor  # [B, Hq, K]
    k: Tensor  # [B, Hk, K]
    v: Tensor  # [B, Hv, V]
    log_g: Tensor | None  # [B, Hv], float32
    S: Tensor  # [B, Hs, D, V], packed
    z: Tensor  # [B, Hs, D]
    offset: Tensor | None  # [Hq], in the state's dtype
    p: int
    scale: float
    normalize: bool

    @property
    def heads(self) -> Heads:
        return Heads(self.q.shape[1], self.k.shape[1], self.v.shape[1])


class JournalStep(NamedTuple):
    """One decoded token's call that keeps recent tokens apart; what `PowerJournalState` has is updated in place."""

    q: Tensor  # [B, Hq, K]
    k: Tensor  # [B, Hk, K]
    v: Tensor  # [B, Hv, V]
    log_g: Tensor | None  # [B, Hv], float32
    S: Tensor  # [B, Hs, D, V], packed
    z: Tensor  # [B, Hs, D]
    keys: Tensor  # [B, L, Hk, K]
    values: Tensor  # [B, L, Hv, V]
    gates: Tensor  # [B, L, Hv], float64
    folded: Tensor  # int64 [B]
    position: Tensor  # int64 [B], of this token
    offset: Tensor | None  # [Hq], in the state's dtype
    p: int
    scale: float
    normalize: bool
    fold: int  # tokens that enter the state at a time
    keep: int  # tokens that stay apart at least, where there are so many

    @property
    def heads(self) -> Heads:
        return Heads(self.q.shape[1], self.k.shape[1], self.v.shape[1])


class JournalBlock(NamedTuple):
    """A few tokens' call that reads what is apart, themselves included, and the state; changes no argument."""

    q: Tensor  # [B, T, Hq, K]
    total: Tensor  # [B, T, Hv], float64: log gates summed up to each token
    S: Tensor  # [B, Hs, D, V], packed
    z: Tensor  # [B, Hs, D]
    keys: Tensor  # [B, L, Hk, K]
    values: Tensor  # [B, L, Hv, V]
    gates: Tensor  # [B, L, Hv], float64
    folded: Tensor  # int64 [B]
    position: Tensor  # int64 [B], of the first of these tokens
    after: Tensor  # int64 [B], how many tokens there are with those of them that are real
    offset: Tensor | None  # [Hq], in the state's dtype
    p: int
    scale: float
    normalize: bool

    @property
    def heads(self) -> Heads:
        return Heads(self.q.shape[2], self.keys.shape[2], self.values.shape[2])


class Fold(NamedTuple):
    """A call that has the oldest tokens of a journal enter the state, which is returned and changes no argument."""

    S: Tensor  # [B, Hs, D, V], packed
    z: Tensor  # [B, Hs, D]
    keys: Tensor  # [B, L, Hk, K]
    values: Tensor  # [B, L, Hv, V]
    gates: Tensor  # [B, L, Hv], float64
    folded: Tensor  # int64 [B]
    until: Tensor  # int64 [B], how many tokens are in the state afterwards
    p: int


def or_empty(x: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What stands for x in a result; an absent one is in this dtype, None for the accumulation dtype."""
    return like.new_empty(0, dtype=dtype or accumulation_dtype(like.dtype)) if x is None else x


def present(x: Tensor) -> Tensor | None:
    """The inverse of `or_empty`."""
    return None if x.dim() == 1 else x


_OF_STATES = frozenset(("S", "z", "dS", "dz"))  # fields with rows of the state; others have tokens,
_OF_ALL = "offset"  # or are of one dimension and belong to all sequences


def take_sequence(group: Group, row: int, tokens: slice) -> Group:
    """Of packed sequences one by itself: `[1, ...]`, and what is absent as it is."""
    names: tuple[str, ...] = group._fields  # type: ignore[attr-defined]
    parts = (
        x if x is None or x.dim() == 1 else x[row : row + 1] if name in _OF_STATES else x[:, tokens]
        for name, x in zip(names, group, strict=True)
    )
    return type(group)(*parts)


def join_sequences(groups: Sequence[Group]) -> Group:
    """The inverse of `take_sequence`, of results."""
    names: tuple[str, ...] = groups[0]._fields  # type: ignore[attr-defined]
    return type(groups[0])(*(_join(name, parts) for name, parts in zip(names, zip(*groups, strict=True), strict=True)))


def _join(name: str, parts: Sequence[Tensor]) -> Tensor:
    if name == _OF_ALL:
        return torch.stack(list(parts)).sum(0)
    return torch.cat(list(parts), 0 if name in _OF_STATES or parts[0].dim() == 1 else 1)
