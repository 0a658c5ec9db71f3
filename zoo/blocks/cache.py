"""The key/value cache of softmax attention: a ring of slots, of which plain softmax never goes once around."""

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.blocks.checks import check_part, check_state
from zoo.blocks.positions import advance
from zoo.blocks.softmax_attention import softmax_attention
from zoo.kernels.cache_attention import cache_attention, supports_cache_attention

__all__ = ["KeyValueState", "append", "attend_in_place", "check_cache", "empty_cache", "held_positions"]


class KeyValueState(NamedTuple):
    """Keys and values `[B, L, Hk, K]` of the last L tokens; the token at position `t` stands in slot `t mod L`.

    `position [B]` int64 counts the tokens seen; `start [B]` int64 is where the current document began: what stands
    before it is never seen again.
    """

    keys: Tensor
    values: Tensor
    position: Tensor
    start: Tensor


def empty_cache(
    batch_size: int, capacity: int, heads: int, width: int, device: torch.device | str, dtype: torch.dtype
) -> KeyValueState:
    """Return a state that has seen nothing, with `capacity` slots for keys and values of `heads` heads."""
    shape = (batch_size, capacity, heads, width)
    return KeyValueState(
        keys=torch.zeros(shape, device=device, dtype=dtype),
        values=torch.zeros(shape, device=device, dtype=dtype),
        position=torch.zeros(batch_size, device=device, dtype=torch.int64),
        start=torch.zeros(batch_size, device=device, dtype=torch.int64),
    )


def check_cache(state: object, x: Tensor, capacity: int | None, heads: int, width: int) -> None:
    """Check that `state` is a cache of these sizes for the rows of `x [B, ...]`; `capacity` None: any.

    Its dtype is what `init_state` was told, which may be another than the model's.

    Raises:
        InputError: it is another mixer's, of another batch size or width, not floating, or on another device.
    """
    check_state(state, KeyValueState, x)
    assert isinstance(state, KeyValueState)
    check_part("start", state.start, (x.shape[0],), torch.int64, x.device)
    shape = (x.shape[0], capacity or state.keys.shape[1], heads, width)
    check_part("keys", state.keys, shape, None, x.device)
    check_part("values", state.values, shape, state.keys.dtype, x.device)


def held_positions(position: Tensor, capacity: int) -> Tensor:
    """Return the position of the token that each slot holds after `position [B]` tokens, `[B, L]`; empty: negative."""
    last = position[:, None] - 1
    return last - (last - torch.arange(capacity, device=position.device)) % capacity


def append(state: KeyValueState, k: Tensor, v: Tensor, lengths: Tensor | None) -> KeyValueState:
    """Return the state after k, v `[B, T, Hk, K]`, of which `lengths [B]` tokens are real; its `start` is unchanged."""
    rows, capacity = state.keys.shape[:2]
    position = advance(state.position, k, lengths)
    held = held_positions(position, capacity)
    old = torch.arange(capacity, device=k.device)
    new = held - state.position[:, None]  # which of the given tokens, if it is one of them
    source = torch.where(new >= 0, capacity + new, old)
    row = torch.arange(rows, device=k.device)[:, None]
    keys = torch.cat((state.keys, k.to(state.keys.dtype)), dim=1)[row, source]
    values = torch.cat((state.values, v.to(state.values.dtype)), dim=1)[row, source]
    return KeyValueState(keys, values, position, state.start)


def attend_in_place(q: Tensor, k: Tensor, v: Tensor, state: KeyValueState) -> Tensor:
    """Append one token's keys and values `[B, Hk, K]` in place and attend to them from q `[B, Hq, K]`; `[B, Hq, K]`."""
    rows, capacity = state.keys.shape[:2]
    row, slot = torch.arange(rows, device=k.device), state.position % capacity
    state.keys[row, slot] = k.to(state.keys.dtype)
    state.values[row, slot] = v.to(state.values.dtype)
    state.position.add_(1)
    if supports_cache_attention(q, state.keys, state.values):
        return cache_attention(q, state.keys, state.values, state.position, state.start)
    visible = held_positions(state.position, capacity) >= state.start[:, None]
    return softmax_attention(q[:, None], state.keys, state.values, visible[:, None])[:, 0]
