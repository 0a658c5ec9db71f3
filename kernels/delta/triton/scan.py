"""What is launched to take states through chunks, which are affine maps: see `states.py`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.kernels.delta.triton.plan import Plan, group_length
from zoo.kernels.delta.triton.states import compose_kernel, join_kernel, states_kernel
from zoo.kernels.launch import launcher

__all__ = ["Given", "History", "Maps", "Scanned", "room", "scan"]

JOINED = 16  # columns of a program that takes groups one after the other


class Maps(NamedTuple):
    """What chunks make of a state: `S <- decay S + A + L^T (X + M S)`."""

    left: Tensor | None  # L [slots, Hv, C, K]; None, like all that may be: there is none
    right: Tensor | None  # M [slots, Hv, C, K]
    wholes: Tensor | None  # the decay [slots, Hv] or [slots, Hv, K], float32


class Given(NamedTuple):
    """What chunks are given beside it."""

    values: Tensor | None = None  # X [B, T, Hv, V]
    additions: Tensor | None = None  # A [slots, Hv, K, V]
    initial: Tensor | None = None  # states of sequences [sequences, Hv, K, V], float32


class History(NamedTuple):
    """Of gradients: the states that a forward pass had before chunks, and before sequences."""

    states: Tensor  # [slots, Hv, K, V]
    first: Tensor | None  # [sequences, Hv, K, V], float32


class Scanned(NamedTuple):
    """What comes out of it; empty what was not asked for."""

    states: Tensor  # before chunks, or gradients after them [slots, Hv, K, V]
    final: Tensor  # what is left of each sequence's [sequences, Hv, K, V], float32
    read: Tensor  # X + M S [B, T, Hv, V]
    alongs: Tensor  # gradients times states, float32 [slots, Hv, parts], or [slots, Hv, parts, K] of channels' gates


def room(plan: Plan, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a matrix for each head: shape is how many of them, and that of one."""
    count, *matrix = shape
    return like.new_empty(count, plan.heads.value, *matrix, dtype=dtype or plan.dtype)


def scan(
    plan: Plan, maps: Maps, given: Given, bounds: Tensor, *, wants_final: bool, history: History | None = None,
    wants_read: bool = False,
) -> Scanned:  # fmt: skip
    """Take states through all chunks, or, with a history, their gradients backwards in time.

    Args:
        plan: of the call.
        maps: what chunks make of a state.
        given: what they are given beside it.
        bounds: of packed chunks, or anything.
        wants_final: return what is left of sequences; those without tokens keep what they have.
        history: of the forward pass, for gradients.
        wants_read: return `X + M S`.
    """
    length, sizes, heads, initial = group_length(plan), plan.sizes, plan.heads.value, given.initial
    reverse, groups, block = history is not None, -(-plan.slots // length), min(sizes.state_block, plan.K, plan.V)
    like = next(x for x in (maps.left, maps.right, given.additions, given.values) if x is not None)
    nothing = like.new_empty(0, dtype=torch.float32)
    states, final = room(plan, like, plan.slots, plan.K, plan.V), nothing
    if wants_final:
        shape = (plan.sequences, heads, plan.K, plan.V)
        final = like.new_zeros(shape, dtype=torch.float32) if initial is None else initial.clone()
    tensors = [nothing if x is None else x for x in (*maps, given.values, given.additions, initial)]
    numbers = (plan.tokens, plan.slots, length, heads)
    reads = maps.right is not None and maps.left is not None  # else it changes nothing of states
    shapes: dict[str, Any] = {
        "C": plan.C, "K": plan.K, "V": plan.V, "BLOCK": block, "GATED": maps.wholes is not None,
        "CHANNELS": plan.channels, "WRITES": maps.left is not None,
    }  # fmt: skip
    how: dict[str, Any] = {
        "HAS_INITIAL": initial is not None, "REVERSE": reverse, "PACKED": plan.packed, "PRECISION": plan.precision,
    }  # fmt: skip
    options = {"num_warps": sizes.state_warps, "num_stages": sizes.state_stages}
    starts = nothing
    if groups > 1 and (plan.packed or length != plan.chunks):
        products = room(plan, like, groups, plan.K, plan.K, dtype=torch.float32)
        sums, starts = (room(plan, like, groups, plan.K, plan.V, dtype=torch.float32) for _ in range(2))
        kinds = {"READS": reads, "VALUES": given.values is not None and maps.left is not None}
        launcher(compose_kernel)[(groups, heads, (plan.K + plan.V) // block)](
            *tensors, products, sums, bounds, *numbers, **shapes, **kinds, ADDS=given.additions is not None, **how,
            **options,
        )  # fmt: skip
        launcher(join_kernel)[(heads, plan.V // JOINED)](
            products, sums, starts, groups, heads, K=plan.K, V=plan.V, BLOCK=JOINED, REVERSE=reverse,
            num_warps=8 if plan.K > 64 else 4, num_stages=2,
        )  # fmt: skip
    read = like.new_empty(plan.batch, plan.tokens, heads, plan.V, dtype=plan.dtype) if wants_read else nothing
    before, first, alongs = nothing, None, nothing
    if history is not None and maps.wholes is not None:
        before, first = history
        parts = (plan.V // block, plan.K) if plan.channels else (plan.V // block,)
        alongs = room(plan, like, plan.slots, *parts, dtype=torch.float32)
    kinds = {"READS": reads or wants_read, "VALUES": given.values is not None}
    launcher(states_kernel)[(groups, heads, plan.V // block)](
        *tensors, starts, states, final, read, before, nothing if first is None else first, alongs, bounds, *numbers,
        **shapes, **kinds, ADDS=given.additions is not None, **how, HAS_STARTS=starts is not nothing,
        WANTS_FINAL=wants_final, WANTS_READ=wants_read, WANTS_ALONG=alongs is not nothing,
        HAS_FIRST=first is not None, **options,
    )  # fmt: skip
    return Scanned(states, final, read, alongs)
