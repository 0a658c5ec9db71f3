"""The key/value cache of softmax attention: a ring of slots, of which plain softmax never goes once around."""

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.blocks.checks import check_part, check_state, values_at_hand
from zoo.blocks.layer import Room
from zoo.blocks.softmax_attention import attend_where
from zoo.blocks.window import Token
from zoo.errors import InputError
from zoo.kernels.cache_attention import cache_attention, supports_cache_attention
from zoo.kernels.precision import concatenate

__all__ = [
    "KeyValueState",
    "append",
    "attend_in_place",
    "check_cache",
    "check_room",
    "empty_cache",
    "held_positions",
    "within_room",
]


class KeyValueState(NamedTuple):
    """Keys and values `[B, L, Hk, K]` of the last L tokens; the token at position `t` stands in slot `t mod L`."""

    keys: Tensor
    values: Tensor


def empty_cache(room: Room, parameter: Tensor, capacity: int, heads: int, width: int) -> KeyValueState:
    """Return a state that has seen nothing, with `capacity` slots for keys and values of `heads` heads."""
    keys, values = (room.zeros(parameter, capacity, heads, width) for _ in range(2))
    return KeyValueState(keys, values)


def check_cache(state: object, x: Tensor, capacity: int | None, heads: int, width: int) -> None:
    """Check that `state` is a cache of these sizes for the rows of `x [B, ...]`; `capacity` None: any.

    Its dtype is what `init_state` was told, which may be another than the model's.

    Raises:
        InputError: it is another mixer's, of another batch size or width, not floating, or on another device.
    """
    check_state(state, KeyValueState, x)
    assert isinstance(state, KeyValueState)
    shape = (x.shape[0], capacity or state.keys.shape[1], heads, width)
    check_part("keys", state.keys, shape, None, x.device)
    check_part("values", state.values, shape, state.keys.dtype, x.device)


def check_room(capacity: int | None, after: Tensor) -> None:
    """Check that there is room for `after [B]` tokens in all, where looking at them costs nothing; None: for any.

    Raises:
        InputError: there is not.
    """
    if capacity is None or not after.shape[0] or not values_at_hand(after):
        return
    needed = int(after.amax())
    if needed > capacity:
        raise InputError(f"state: holds {capacity} tokens, {needed} needed; make it with init_state(max_len={needed})")


def within_room(k: Tensor, capacity: int, after: Tensor) -> Tensor:
    """Return keys `[B, ..., Hk, K]` that enter a cache which holds every token, of which there are then `after [B]`.

    A row without room would overwrite its oldest token. Where that cannot be told, in a graph or on a GPU that nobody
    waits for, its keys are NaN, and so is what attends to them: no output is that of a shorter past.

    Raises:
        InputError: there is no room, and it can be told.
    """
    check_room(capacity, after)
    if values_at_hand(after):
        return k
    full = (after > capacity).view(-1, *[1] * (k.dim() - 1))
    return torch.where(full, torch.nan, k)


def held_positions(position: Tensor, capacity: int) -> Tensor:
    """Return the position of the token that each slot holds after `position [B]` tokens, `[B, L]`; empty: negative."""
    last = position[:, None] - 1
    return last - (last - torch.arange(capacity, device=position.device)) % capacity


def append(state: KeyValueState, k: Tensor, v: Tensor, before: Tensor, after: Tensor) -> KeyValueState:
    """Return the state with keys and values `[B, T, Hk, K]` of tokens from `before [B]` on, up to `after [B]`."""
    rows, capacity = state.keys.shape[:2]
    old = torch.arange(capacity, device=k.device)
    new = held_positions(after, capacity) - before[:, None]  # which of the tokens, if it is one of them
    source = torch.where(new >= 0, capacity + new, old)
    row = torch.arange(rows, device=k.device)[:, None]
    keys = concatenate((state.keys, k.to(state.keys.dtype)), dim=1)[row, source]
    values = concatenate((state.values, v.to(state.values.dtype)), dim=1)[row, source]
    return KeyValueState(keys, values)


def attend_in_place(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: KeyValueState,
    token: Token,
    sink: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """Append one token's keys and values `[B, Hk, K]` in place and attend to them from q `[B, Hq, K]`; `[B, Hq, K]`.

    `sink [Hq]` and `cap` are as in `attend_where`.
    """
    rows, capacity = state.keys.shape[:2]
    row, slot = torch.arange(rows, device=k.device), token.position % capacity
    state.keys[row, slot] = k.to(state.keys.dtype)
    state.values[row, slot] = v.to(state.values.dtype)
    if sink is None and cap is None and supports_cache_attention(q, state.keys, state.values):
        return cache_attention(q, state.keys, state.values, token.after, token.start)
    visible = held_positions(token.after, capacity) >= token.start[:, None]
    return attend_where(q[:, None], state.keys, state.values, visible[:, None], sink, cap)[:, 0]
