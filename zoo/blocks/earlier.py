"""Taking tokens back: a layer's state as it was some tokens ago.

Where a layer keeps its last tokens one by one, only the position moves. Others keep copies of their states, if a state
is made for that (`Room.rollback`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from zoo.blocks.checks import check_part, values_at_hand
from zoo.blocks.layer import Layer, Room
from zoo.blocks.window import Shared, Window
from zoo.errors import InputError

__all__ = [
    "EarlierStates", "check_any_state", "check_rollback", "current", "keep_current", "mix_keeping", "most_rollback",
    "new_state", "take_back",
]  # fmt: skip


class EarlierStates(NamedTuple):
    """A layer's state, and those before its last n tokens: of each tensor `[B, ...]` copies `[B, n, ...]`.

    The state in which a row has seen t tokens stands in slot `t mod n`.
    """

    now: Any
    earlier: Any


def new_state(layer: Layer, room: Room) -> Any:
    """Return a layer's state before the first token, with copies of earlier ones where it needs them."""
    if not room.rollback or layer.takes_back:
        return layer.empty_state(room)
    now = layer.empty_state(room._replace(rollback=None))
    return EarlierStates(now, _pytree.tree_map(lambda x: x[:, None].repeat_interleave(room.rollback, 1), now))


def current(state: Any) -> Any:
    """Return a layer's own state."""
    return state.now if isinstance(state, EarlierStates) else state


def check_any_state(layer: Layer, state: Any, x: Tensor) -> None:
    """As `Layer.check_state`, of the state and its copies."""
    layer.check_state(current(state), x)
    if isinstance(state, EarlierStates):
        slots = _slots(state)
        for now, earlier in zip(*map(_pytree.tree_leaves, state), strict=True):
            check_part("earlier", earlier, (now.shape[0], slots, *now.shape[1:]), now.dtype, x.device)


def keep_current(state: EarlierStates, position: Tensor) -> None:
    """Keep the state that has seen `position [B]` tokens, in place."""
    row, slot = torch.arange(len(position), device=position.device), position % _slots(state)
    for now, earlier in zip(*map(_pytree.tree_leaves, state), strict=True):
        earlier[row, slot] = now


def mix_keeping(
    mix: Callable[[Tensor, Any, Window], tuple[Tensor, Any]], x: Tensor, state: EarlierStates, window: Window
) -> tuple[Tensor, EarlierStates | None]:
    """Mix `x [B, T, M]`, and keep the states before the last n real tokens: those of a sequence that ends there.

    Raises:
        InputError: several processes have the sequence together.
    """
    if window.group is not None:
        raise InputError("state: expected one of init_state where several processes have one sequence")
    y, now = mix(x, state.now, window)
    if not window.return_state:
        return y, None
    (B, T), slots, past = x.shape[:2], _slots(state), state.now
    lengths = torch.full_like(window.before, T) if window.lengths is None else window.lengths
    if 2 * slots < T:  # all but the last ones need to be mixed once more only
        _, past = mix(x, past, _shortened(window, (lengths - slots).clamp(min=0)))
        x, window, lengths = _ending(x, window, lengths, slots)
    row, earlier = torch.arange(B, device=x.device), _pytree.tree_map(torch.clone, state.earlier)
    for back in range(1, min(slots, T) + 1):
        length = (lengths - back).clamp(min=0)
        _, before = mix(x, past, _shortened(window, length))
        slot = (window.before + length) % slots
        for kept, part in zip(_pytree.tree_leaves(earlier), _pytree.tree_leaves(before), strict=True):
            there = (lengths >= back).view(-1, *[1] * (part.dim() - 1))
            kept[row, slot] = torch.where(there, part.to(kept.dtype), kept[row, slot])
    return y, EarlierStates(now, earlier)


def _shortened(window: Window, lengths: Tensor) -> Window:
    """The window of the first `lengths [B]` tokens, from which nothing is handed on."""
    last_start = window.starts.gather(1, lengths[:, None])[:, 0]
    after, shared = window.before + lengths, Shared(window.shared.earlier)
    return window._replace(lengths=lengths, after=after, last_start=last_start, shared=shared)


def _ending(x: Tensor, window: Window, lengths: Tensor, count: int) -> tuple[Tensor, Window, Tensor]:
    """The last `count` of the first `lengths [B]` tokens, or all where there are fewer, then padded: `[B, count, M]`.

    With their window, and how many they are.
    """
    first = (lengths - count).clamp(min=0)
    row, at = torch.arange(len(x), device=x.device)[:, None], first[:, None] + torch.arange(count, device=x.device)
    window = window._replace(
        positions=window.before[:, None] + at,
        starts=window.starts[row, torch.cat((first[:, None], at + 1), 1)],
        before=window.before + first,
        resets=None if window.resets is None else window.resets[row, at],
        shared=Shared({name: x[row, at] if x.dim() > 2 else x for name, x in window.shared.earlier.items()}),
    )
    return x[row, at], window, lengths - first


def most_rollback(layer: Layer, state: Any) -> int | None:
    """Return how many tokens can be taken back from a layer's state, at any time; None: as many as there are."""
    return _slots(state) if isinstance(state, EarlierStates) else layer.most_rollback(state)


def take_back(state: Any, position: Tensor, count: Tensor) -> None:
    """Bring a layer's state back by `count [B]` tokens, to where a row has seen `position [B]`, in place."""
    if not isinstance(state, EarlierStates):
        return
    row, slot = torch.arange(len(position), device=position.device), position % _slots(state)
    for now, earlier in zip(*map(_pytree.tree_leaves, state), strict=True):
        moved = (count > 0).view(-1, *[1] * (now.dim() - 1))
        now.copy_(torch.where(moved, earlier[row, slot], now))


def check_rollback(tokens: int | Tensor, seen: Tensor, most: int | None) -> Tensor:
    """Return a number of tokens to take back as one a row, `[B]` int64; `seen [B]` have those of this document.

    Values of a tensor are looked at where that costs nothing.

    Raises:
        InputError: it is no number of tokens a row, or more than can be taken back (`most`; None: any number).
    """
    rows = len(seen)
    if isinstance(tokens, Tensor):
        if tokens.shape != (rows,) or tokens.dtype != torch.int64:
            raise InputError(
                f"tokens: expected a whole number or int64 [{rows}], was {tokens.dtype} {list(tokens.shape)}"
            )
        counts = tokens.to(seen.device)
    elif type(tokens) is int:
        counts = torch.full_like(seen, tokens)
    else:
        raise InputError(f"tokens: expected a whole number or int64 [{rows}], was {tokens!r:.60}")
    known = tokens if isinstance(tokens, int) else int(counts.amax()) if rows and values_at_hand(counts) else None
    least = tokens if isinstance(tokens, int) else int(counts.amin()) if rows and values_at_hand(counts) else 0
    if least < 0:
        raise InputError(f"tokens: expected 0 or more to take back, was {least}")
    if known is not None and most is not None and known > most:
        raise InputError(
            f"tokens: expected at most {most}, which this state can take back, was {known}; "
            f"make it with decoding_state(rollback={known})"
        )
    if values_at_hand(seen) and bool((counts > seen).any()):
        raise InputError(f"tokens: expected at most those of each document, {seen.tolist()}, was {counts.tolist()}")
    return counts


def _slots(state: EarlierStates) -> int:
    slots: int = _pytree.tree_leaves(state.earlier)[0].shape[1]
    return slots
