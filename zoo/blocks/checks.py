"""Checks of what layers are called with: shapes and types always, values where looking at them costs nothing."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError

__all__ = ["check_part", "check_progress", "check_sequence", "check_state", "describe", "values_at_hand"]


def values_at_hand(x: Tensor) -> bool:
    """Whether `x` can be looked at without stalling a device or breaking a graph: real data on the CPU, in eager."""
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x):  # of torch.func.vmap
        return False
    return x.device.type == "cpu" and type(x) in (Tensor, nn.Parameter)


def check_sequence(x: Tensor, lengths: Tensor | None, resets: Tensor | None, *, shares: int = 1) -> None:
    """Check `lengths [B]` and `resets [B, T]` against `x [B, T, ...]`, one of so many shares of a sequence.

    Raises:
        InputError: names the argument, what it was and what it must be.
    """
    (B, T), tokens = x.shape[:2], x.shape[1] * shares
    if lengths is not None:
        if lengths.shape != (B,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise InputError(f"lengths: expected integers [{B}], was {describe(lengths)}")
        if values_at_hand(lengths) and B and not (lengths.amin() >= 0 and lengths.amax() <= tokens):
            raise InputError(f"lengths: expected 0 to {tokens}, the tokens given, was {lengths.tolist()}")
    if resets is not None and (resets.shape != (B, T) or resets.dtype != torch.bool):
        raise InputError(f"resets: expected bool [{B}, {T}], was {describe(resets)}")


def check_progress(state: Any, kind: type, x: Tensor) -> None:
    """Check that `state` is a `kind` that says how far the rows of `x [B, ...]` are, on its device.

    Raises:
        InputError: it is another kind of state, of another batch size, or on another device.
    """
    _check_kind(state, kind)
    for name in ("position", "start"):
        _check_rows(getattr(state, name), x)
        check_part(name, getattr(state, name), (x.shape[0],), torch.int64, x.device)


def check_state(state: Any, kind: type, x: Tensor) -> None:
    """Check that `state` is a `kind` for the rows of `x [B, ...]`; its first part is a tensor.

    Raises:
        InputError: it is another layer's, or of another batch size.
    """
    _check_kind(state, kind)
    _check_rows(state[0], x)


def _check_kind(state: Any, kind: type) -> None:
    if not isinstance(state, kind):
        raise InputError(f"state: expected {kind.__name__} as init_state returns it, was {type(state).__name__}")


def _check_rows(part: Tensor, x: Tensor) -> None:
    if part.shape[:1] != x.shape[:1]:
        raise InputError(f"state: expected a batch of {x.shape[0]} as in the input, was {part.shape[0]}")


def check_part(
    name: str, part: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None, device: torch.device
) -> None:
    """Check one tensor of a state; `dtype` None: any floating one, as of activations that are kept.

    Raises:
        InputError: names the part, what it was and what it must be.
    """
    if part.shape != shape:
        raise InputError(f"state.{name}: expected {list(shape)} as in this mixer, was {describe(part)}")
    if dtype is not None and part.dtype != dtype:
        raise InputError(f"state.{name}: expected {dtype}, was {part.dtype}")
    if dtype is None and not part.is_floating_point():
        raise InputError(f"state.{name}: expected a floating dtype, was {part.dtype}")
    if part.device != device:
        raise InputError(f"state.{name}: expected on {device} as the input is, was on {part.device}")


def describe(x: Tensor) -> str:
    """Return dtype and shape for an error message, such as `float32 [2, 5]`."""
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
