"""Devices, by name: those that torch has support for and finds on this machine."""

from typing import overload

import torch

from zoo.kernels.errors import InputError

__all__ = ["usable_device"]


@overload
def usable_device(device: torch.device | str) -> torch.device: ...


@overload
def usable_device(device: None) -> None: ...


@overload
def usable_device(device: torch.device | str | None) -> torch.device | None: ...


def usable_device(device: torch.device | str | None) -> torch.device | None:
    """Return the device, on which tensors can be made, without data on `meta`; None stays None.

    Raises:
        InputError: it is none that torch knows, is built for or finds here.
    """
    if device is None:
        return None
    if torch.compiler.is_compiling():  # where nothing can be tried
        return torch.device(device)
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (AssertionError, ImportError, RuntimeError, TypeError):  # whichever each backend answers with
        found = "'cpu' or 'cuda'" if torch.cuda.is_available() else "'cpu' (torch finds no GPU)"
        raise InputError(f"device: must be one that there is here, such as {found}, got {device!r}") from None
    return place
