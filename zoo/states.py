"""What can be done with any state: a NamedTuple, or a tuple, of tensors and further states, batch first throughout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree

from zoo.errors import InputError
from zoo.kernels.power import state_limit

if TYPE_CHECKING:
    from zoo.blocks.mixer import Mixer
    from zoo.models.decoder import Decoder

__all__ = ["any_state", "detach_state", "map_state", "move_state", "overwrite_state", "reorder_state", "state_bytes"]

State = TypeVar("State")


def any_state(model: Decoder | Mixer, context: int, dtype: torch.dtype | None = None) -> Any:
    """Return the state of one sequence on the meta device, also one that is over the op's limit.

    Raises:
        InputError: one of its tensors would have more bytes than torch can count.
    """
    try:
        with state_limit(2**63):
            return model.init_state(1, max_len=context, device="meta", dtype=dtype)
    except (InputError, RuntimeError):  # the op's own refusal, or torch's
        raise InputError(
            f"state: expected one of fewer than 2^63 bytes, which can be counted, was larger at {context:,} tokens; "
            "take a smaller power, head width, state width or window"
        ) from None


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Return a state of the same structure with `function` applied to every tensor; None stays None.

    Raises:
        InputError: `state` holds something that is neither a tensor nor a tuple.
    """
    if state is None:
        return state
    if isinstance(state, Tensor):
        return function(state)  # type: ignore[return-value]
    if isinstance(state, tuple):
        parts = [map_state(function, part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    raise InputError(f"state: expected tensors in tuples, as init_state returns them, was {type(state).__name__}")


def state_bytes(state: object) -> int:
    """Return the bytes that a state's tensors take together."""
    total = 0

    def count(x: Tensor) -> Tensor:
        nonlocal total
        total += x.numel() * x.element_size()
        return x

    map_state(count, state)
    return total


def overwrite_state(state: State, source: State) -> None:
    """Write the tensors of `source`, a state of the same sizes, into those of `state`, which stay where they are."""
    for target, tensor in zip(_pytree.tree_leaves(state), _pytree.tree_leaves(source), strict=True):
        target.copy_(tensor)


def reorder_state(state: State, index: Tensor) -> State:
    """Return a state whose row `i` is a copy of row `index[i]`, as beam search wants it.

    Args:
        index: `[n]` integers; n may differ from the batch, and rows may repeat or be left out.

    Raises:
        InputError: `index` is not a vector of integers.
    """
    if index.dim() != 1 or index.is_floating_point() or index.dtype == torch.bool:
        raise InputError(f"index: expected integers [n], was {index.dtype} {list(index.shape)}")
    return map_state(lambda x: x.index_select(0, index.to(x.device)), state)


def detach_state(state: State) -> State:
    """Return the state cut off from the graph that made it: gradients stop here (truncated backpropagation)."""
    return map_state(Tensor.detach, state)


def move_state(state: State, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
    """Return the state on another device, in another floating dtype, or both; positions stay integers.

    Sums over the past (S and z of power attention) are taken back only in float32.
    """
    return map_state(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None), state)
