"""What is launched to take states through chunks, which are affine maps: see `states.py`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.kernels.delta.triton.plan import Plan, count_groups, group_length, most_groups
from zoo.kernels.delta.triton.states import compose_kernel, join_kernel, states_kernel
from zoo.kernels.launch import launcher

__all__ = ["Given", "History", "Maps", "Scanned", "Way", "room"]

JOINED = 16  # columns of a program that takes groups one after the other


class Maps(NamedTuple):
    """What chunks make of a state: `S <- decay S + A + Q^T Y + L^T E (X + M S)`.

    Shapes `[slots, Hv, C, K]`, and decays `[slots, Hv, K]`, are of channels' gates, or are kept for them; where heads
    have gates, or none, L and M are keys as they were given, Q queries, and decays those of tokens: see
    `states_kernel`.
    """

    left: Tensor | None  # L; None, like all that may be: there is none
    right: Tensor | None  # M
    decays: Tensor | None  # float32
    rates: Tensor | None = None  # factors on what is written, and on what its gradient reads [slots, Hv, C], float32
    inverses: Tensor | None = None  # E, in parts [slots, Hv, parts, C, C]


class Given(NamedTuple):
    """What chunks are given beside it."""

    values: Tensor | None = None  # X [B, T, Hv, V]
    additions: Tensor | None = None  # A [slots, Hv, K, V]
    queries: Tensor | None = None  # Q
    weights: Tensor | None = None  # W [slots, Hv, C, C]: with queries, X is `W^T Y`
    dy: Tensor | None = None  # Y [B, T, Hv, V], if there are queries
    initial: Tensor | None = None  # states of sequences [sequences, Hv, K, V], float32


class History(NamedTuple):
    """Of gradients: the states that a forward pass had before chunks, and before sequences."""

    states: Tensor  # [slots, Hv, K, V]
    first: Tensor | None  # [sequences, Hv, K, V], float32


class Scanned(NamedTuple):
    """What comes out of it; empty what was not asked for."""

    states: Tensor  # before chunks, or gradients after them [slots, Hv, K, V]
    final: Tensor  # what is left of each sequence's [sequences, Hv, K, V], float32
    read: Tensor  # E (X + M S) [B, T, Hv, V]
    alongs: Tensor  # gradients times states, float32 [slots, Hv, parts], or [slots, Hv, parts, K] of channels' gates


def room(plan: Plan, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a matrix for each head: shape is how many of them, and that of one."""
    count, *matrix = shape
    return like.new_empty(count, plan.heads.value, *matrix, dtype=dtype or plan.dtype)


class Way(NamedTuple):
    """States through all chunks, or gradients backwards in time."""

    plan: Plan
    maps: Maps
    given: Given
    bounds: Tensor  # of packed chunks, or anything
    nothing: Tensor  # stands for an absent tensor
    reverse: bool = False

    @property
    def block(self) -> int:
        """Columns of a state that a program carries."""
        return min(self.plan.sizes.state_block, self.plan.K, self.plan.V)

    @property
    def groups(self) -> int:
        """Of chunks that a program takes one after the other."""
        return -(-self.plan.slots // group_length(self.plan))

    @property
    def numbers(self) -> tuple[float, ...]:
        """Numbers that kernels take."""
        plan = self.plan
        return plan.tokens, plan.slots, group_length(plan), plan.scale, *plan.heads

    @property
    def shapes(self) -> dict[str, Any]:
        """What all kernels on the way are compiled for."""
        plan = self.plan
        return {
            "C": plan.C, "K": plan.K, "V": plan.V, "BLOCK": self.block, "GATED": self.maps.decays is not None,
            "CHANNELS": plan.channels, "RATED": self.maps.rates is not None,
            "PARTS": 0 if self.maps.inverses is None else self.maps.inverses.shape[2],
        }  # fmt: skip

    @property
    def kinds(self) -> dict[str, Any]:
        """And what those are that say what chunks make of states."""
        plan, given, writes = self.plan, self.given, self.maps.left is not None
        return {
            "WRITES": writes, "READS": self.maps.right is not None, "VALUES": given.values is not None,
            "ADDS": given.additions is not None, "ASKS": given.queries is not None,
            "HAS_INITIAL": given.initial is not None, "REVERSE": self.reverse, "PACKED": plan.packed,
            "PRECISION": plan.precision,
        }  # fmt: skip

    def or_nothing(self, *tensors: Tensor | None) -> list[Tensor]:
        """What a kernel gets for tensors that may be absent."""
        return [self.nothing if x is None else x for x in tensors]

    def starts(self) -> Tensor:
        """States that groups of chunks start from, float32 `[groups or more, Hv, K, V]`, anything where groups are
        sequences."""
        plan, groups, sizes = self.plan, count_groups(self.plan), self.plan.sizes
        like, heads = self.nothing, plan.heads.value
        starts = room(plan, like, most_groups(plan), plan.K, plan.V, dtype=torch.float32)
        if not groups:
            return starts
        products = room(plan, like, groups, plan.K, plan.K, dtype=torch.float32)
        sums = room(plan, like, groups, plan.K, plan.V, dtype=torch.float32)
        tensors = self.or_nothing(*self.maps, *self.given)
        launcher(compose_kernel)[(groups, heads, (plan.K + plan.V) // self.block)](
            *tensors, products, sums, self.bounds, *self.numbers, **self.shapes, **self.kinds,
            num_warps=sizes.state_warps, num_stages=sizes.state_stages, maxnreg=sizes.compose_registers,
        )  # fmt: skip
        launcher(join_kernel)[(heads, plan.V // JOINED)](
            products, sums, starts, groups, heads, K=plan.K, V=plan.V, BLOCK=JOINED, REVERSE=self.reverse,
            num_warps=8 if plan.K > 64 else 4, num_stages=3,
        )  # fmt: skip
        return starts

    def final(self) -> Tensor:
        """Room for what is left of sequences; packed ones without tokens keep what they have."""
        plan, initial = self.plan, self.given.initial
        shape = (plan.sequences, plan.heads.value, plan.K, plan.V)
        if not plan.packed:
            return self.nothing.new_empty(shape, dtype=torch.float32)
        return self.nothing.new_zeros(shape, dtype=torch.float32) if initial is None else initial.clone()

    def states(
        self, starts: Tensor, *, wants_final: bool = False, wants_read: bool = False, history: History | None = None,
    ) -> Scanned:  # fmt: skip
        """States before all chunks, or gradients after them.

        Args:
            starts: of groups, as `starts` gives them.
            wants_final: return what is left of sequences.
            wants_read: return `E (X + M S)`.
            history: of the forward pass, for gradients.
        """
        plan, sizes, heads, nothing = self.plan, self.plan.sizes, self.plan.heads.value, self.nothing
        states, final = room(plan, nothing, plan.slots, plan.K, plan.V), self.final() if wants_final else nothing
        shape = (plan.batch, plan.tokens, heads, plan.V)
        read = nothing.new_empty(shape, dtype=plan.dtype) if wants_read else nothing
        before, first, alongs = nothing, None, nothing
        if history is not None and self.maps.decays is not None:
            before, first = history
            parts = (plan.V // self.block, plan.K) if plan.channels else (plan.V // self.block,)
            alongs = room(plan, nothing, plan.slots, *parts, dtype=torch.float32)
        tensors = self.or_nothing(*self.maps, *self.given, starts)
        launcher(states_kernel)[(self.groups, heads, plan.V // self.block)](
            *tensors, states, final, read, before, *self.or_nothing(first), alongs, self.bounds, *self.numbers,
            **self.shapes, **self.kinds, HAS_STARTS=count_groups(plan) > 0,
            WANTS_FINAL=wants_final, WANTS_READ=wants_read, WANTS_ALONG=alongs is not nothing,
            HAS_FIRST=first is not None, num_warps=sizes.state_warps, num_stages=sizes.state_stages,
        )  # fmt: skip
        return Scanned(states, final, read, alongs)
