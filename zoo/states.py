"""What can be done with any state: a NamedTuple, or a tuple, of tensors and further states, batch first throughout."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils import _pytree

from zoo.blocks.checks import check_progress
from zoo.blocks.mixer import MixerState
from zoo.blocks.rows import ROWS, is_in_order
from zoo.errors import InputError
from zoo.kernels.devices import usable_device
from zoo.kernels.power import state_limit
from zoo.reading import read_regular
from zoo.report.files import replace_file

if TYPE_CHECKING:
    from zoo.blocks.mixer import Mixer
    from zoo.models.decoder import Decoder

__all__ = [
    "any_state",
    "detach_state",
    "load_state",
    "map_state",
    "move_state",
    "overwrite_state",
    "reorder_state",
    "save_state",
    "state_bytes",
]

State = TypeVar("State")
_ROWS = "rows"


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
    device = usable_device(device)
    return map_state(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None), state)


def save_state(state: object, path: Path | str) -> None:
    """Write a state to one file of safetensors, whole or not at all; `load_state` reads it.

    Tensors are named by where they stand, such as `layers.0.0.S`. Unlike what torch.save writes, such a file names no
    class and runs nothing, so that anyone's can be read. Beside them it says in which order channels stand.

    Raises:
        InputError: `state` is none, or the file cannot be written.
    """
    map_state(lambda x: x, state)
    found, _ = _pytree.tree_flatten_with_path(state)
    tensors = {_name(place): part.detach().clone(memory_format=torch.contiguous_format) for place, part in found}
    replace_file(Path(path), safetensors.torch.save(tensors, {_ROWS: str(ROWS)}), InputError)


def load_state(path: Path | str, model: Decoder | Mixer, *, device: torch.device | str | None = None) -> Any:
    """Read a state that `save_state` wrote.

    Args:
        path: of the file.
        model: whose state it is, or a mixer by itself.
        device: where it goes; the parameters' by default.

    Raises:
        InputError: the file cannot be read, is damaged, or holds the state of another model, or one of an earlier
            version, when convolutions of several heads had channels in another order.
    """
    path = Path(path)
    place = usable_device(device) or next(model.parameters()).device
    try:
        content = read_regular(path)
        tensors = safetensors.torch.load(content)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    rows = tensors["position"].shape[0] if "position" in tensors and tensors["position"].dim() else 1
    kinds = (model.init_state, model.decoding_state, partial(model.decoding_state, rollback=1))
    known = [_structure(make(rows, max_len=1, device="meta")) for make in kinds]
    names, structure = next((kind for kind in known if tensors.keys() == set(kind[0])), known[0])
    if tensors.keys() != set(names):
        other = sorted(tensors.keys() ^ set(names))[0]
        raise InputError(f"{path}: expected the state of this model, was another's: {other!r} is in one of them alone")
    if not is_in_order(model, _rows_of(content)) and any(name.endswith("convolution") for name in names):
        raise InputError(f"{path}: expected a state of this version, was an earlier one's, with channels by kind")
    state = _pytree.tree_unflatten([tensors[name].to(place) for name in names], structure)
    try:
        if isinstance(state, MixerState):
            check_progress(state, MixerState, state.position)
            model.check_state(state.layer, state.position)
        else:
            model.check_state(state, state.position)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return state


def _rows_of(content: bytes) -> int:
    """In which order channels stand in a file of safetensors (`zoo.blocks.rows`); earlier versions did not say it."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return int(header.get("__metadata__", {}).get(_ROWS, ROWS - 1))


def _structure(state: object) -> tuple[list[str], _pytree.TreeSpec]:
    """The names of a state's tensors, and what they are parts of."""
    parts, structure = _pytree.tree_flatten_with_path(state)
    return [_name(place) for place, _ in parts], structure


def _name(place: _pytree.KeyPath) -> str:
    return ".".join(str(getattr(key, "name", getattr(key, "idx", ""))) for key in place)
