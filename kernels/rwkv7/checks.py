"""Checks of what a user passes to `rwkv7`: one line that names the argument, what it was, what it must be."""

import math

import torch
from torch import Tensor

from zoo.kernels.errors import InputError
from zoo.kernels.precision import accumulation_dtype

__all__ = ["check_arguments", "check_options", "check_values"]

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_arguments(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, state: Tensor | None, *, tokens: bool
) -> None:
    """Check shapes, dtypes and devices; `tokens` says whether there is a token dimension."""
    layout = "[B, T, H, N]" if tokens else "[B, H, N]"
    if r.dim() != (4 if tokens else 3):
        raise InputError(f"r: expected {layout}, was {list(r.shape)}")
    if r.shape[-2] < 1 or r.shape[-1] < 1:
        raise InputError(f"r: expected {layout} with at least one head and one channel, was {list(r.shape)}")
    for name, x in (("r", r), ("k", k), ("v", v), ("kappa", kappa), ("a", a), ("log_w", log_w)):
        if x.shape != r.shape:
            raise InputError(f"{name}: expected {list(r.shape)} as r is, was {list(x.shape)}")
        if x.device != r.device:
            raise InputError(f"{name}: expected on {r.device} as r is, was on {x.device}")
        if x.dtype not in _FLOATING:
            raise InputError(f"{name}: expected a floating dtype, was {x.dtype}")
        if name != "log_w" and x.dtype != r.dtype:
            raise InputError(f"{name}: expected {r.dtype} as r is, was {x.dtype}")
    if log_w.dtype not in (torch.float32, torch.float64):
        raise InputError(f"log_w: expected torch.float32, was {log_w.dtype}")
    if state is not None:
        _check_state(state, r)


def _check_state(state: Tensor, r: Tensor) -> None:
    B, H, N = r.shape[0], r.shape[-2], r.shape[-1]
    if state.shape != (B, H, N, N):
        raise InputError(
            f"state: expected {[B, H, N, N]} for batch {B}, {H} heads and width {N}, was {list(state.shape)}"
        )
    if state.dtype != accumulation_dtype(r.dtype):
        raise InputError(f"state: expected {accumulation_dtype(r.dtype)}, was {state.dtype}")
    if state.device != r.device:
        raise InputError(f"state: expected on {r.device} as r is, was on {state.device}")


def check_options(
    r: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    log_w_floor: float,
    chunk_size: int | None,
    impl: str | None,
) -> None:
    """Check everything but the mixed tensors themselves; `r [B, T, H, N]` has been checked."""
    if impl not in (None, "triton", "chunked", "recurrent"):
        raise InputError(f"impl: expected 'triton', 'chunked', 'recurrent' or None, was {impl!r}")
    if not log_w_floor <= 0:
        raise InputError(f"log_w_floor: expected a log decay of at most 0, was {log_w_floor!r}")
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise InputError(f"chunk_size: expected a whole number from 1 on, was {chunk_size!r}")
    if lengths is not None and lengths.shape != r.shape[:1]:
        raise InputError(f"lengths: expected {list(r.shape[:1])} as the batch, was {list(lengths.shape)}")
    if lengths is not None and (lengths.is_floating_point() or lengths.dtype == torch.bool):
        raise InputError(f"lengths: expected whole numbers, was {lengths.dtype}")
    if resets is not None and resets.shape != r.shape[:2]:
        raise InputError(f"resets: expected {list(r.shape[:2])} as r is, was {list(resets.shape)}")
    if resets is not None and resets.dtype != torch.bool:
        raise InputError(f"resets: expected torch.bool, was {resets.dtype}")
    if resets is not None and resets.device != r.device:
        raise InputError(f"resets: expected on {r.device} as r is, was on {resets.device}")


def _known(x: Tensor) -> bool:
    """Whether looking at values is free: real data on the CPU, outside the compiler."""
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x):  # as in torch.func.vmap
        return False
    if type(x) not in (Tensor, torch.nn.Parameter):
        return False
    return x.device.type == "cpu"


def check_values(log_w: Tensor | None, lengths: Tensor | None, T: int, log_w_floor: float = -math.inf) -> None:
    """Check values, where that does not make a device wait."""
    if log_w is not None and _known(log_w) and log_w.numel():
        smallest, largest = (float(extreme) for extreme in log_w.detach().aminmax())  # NaN if there is one
        if not largest <= 0:
            raise InputError(f"log_w: expected log decays of at most 0, found {largest:g}")
        if smallest < log_w_floor:
            raise InputError(f"log_w: expected log decays of at least log_w_floor={log_w_floor:g}, found {smallest:g}")
    if lengths is not None and _known(lengths) and bool(((lengths < 0) | (lengths > T)).any()):
        raise InputError(f"lengths: expected from 0 to T={T}, was {lengths.tolist()[:8]}")
