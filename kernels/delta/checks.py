"""Checks of what a user passes to the delta rule: one line that names the argument, what it was, what it must be."""

import torch
from torch import Tensor

from zoo.kernels.delta.call import Inputs, Step
from zoo.kernels.errors import InputError
from zoo.kernels.power.checks import check_packing, known
from zoo.kernels.power.expansion import state_size
from zoo.kernels.power.state import check_state_size
from zoo.kernels.precision import accumulation_dtype

__all__ = ["check_call", "check_options", "check_rates"]

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_call(call: Inputs | Step, p: int) -> None:
    """Check shapes, dtypes and devices."""
    tokens = 2 if isinstance(call, Inputs) else 1  # dimensions before the heads
    q, k, v = call.q, call.k, call.v
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_tensor(name, x, q, tokens)
    if k.shape[-1] != q.shape[-1]:
        raise InputError(f"k: expected key width {q.shape[-1]} as in q, was {k.shape[-1]}")
    if type(p) is not int or p < 1:
        raise InputError(f"p: expected a whole number from 1 on, was {p!r}")
    if min(x.shape[-2] for x in (q, k, v)) < 1:
        counts = ", ".join(str(x.shape[-2]) for x in (q, k, v))
        raise InputError(f"q, k, v: expected at least one head each, was {counts}")
    for name, x in (("q", q), ("k", k)):
        if v.shape[-2] % x.shape[-2]:
            raise InputError(f"{name}: expected {x.shape[-2]} heads to divide {v.shape[-2]} value heads")
    check_state_size(k.shape[-1], v.shape[-1], p)
    if call.log_g is not None:
        _check_gates(call.log_g, k, v, p)
    if call.beta is not None:
        _check_beta(call.beta, v)
    if isinstance(call, Inputs) and call.cu_seqlens is not None:
        check_packing(q, call.cu_seqlens)
    if call.S is not None:
        _check_state(call.S, call.rows if isinstance(call, Inputs) else q.shape[0], k, v, p)


def _check_tensor(name: str, x: Tensor, q: Tensor, tokens: int) -> None:
    if x.dim() != tokens + 2:
        layout = f"[B, {'T, ' if tokens == 2 else ''}H, {'V' if name == 'v' else 'K'}]"
        raise InputError(f"{name}: expected {layout}, was {list(x.shape)}")
    if x.dtype not in _FLOATING:
        raise InputError(f"{name}: expected a floating dtype, was {x.dtype}")
    if x.device != q.device:
        raise InputError(f"{name}: expected on {q.device} as q is, was on {x.device}")
    if x.shape[:tokens] != q.shape[:tokens]:
        raise InputError(f"{name}: expected {list(q.shape[:tokens])} as in q before the heads, was {list(x.shape)}")
    if x.dtype != q.dtype and not torch.is_autocast_enabled(q.device.type):
        raise InputError(f"{name}: expected {q.dtype} as q is, was {x.dtype}")


def _check_gates(log_g: Tensor, k: Tensor, v: Tensor, p: int) -> None:
    of_heads, of_channels = v.shape[:-1], (*v.shape[:-1], k.shape[-1])
    if log_g.shape not in (of_heads, of_channels):
        raise InputError(
            f"log_g: expected {list(of_heads)} as in v, or {list(of_channels)} for a gate a key channel, was "
            f"{list(log_g.shape)}"
        )
    if p > 1 and log_g.shape == of_channels:
        raise InputError(f"log_g: expected {list(of_heads)}, a gate a head, for p={p}, was {list(log_g.shape)}")
    if log_g.dtype not in (torch.float32, torch.float64):
        raise InputError(f"log_g: expected torch.float32, was {log_g.dtype}")
    if log_g.device != v.device:
        raise InputError(f"log_g: expected on {v.device} as q is, was on {log_g.device}")


def _check_beta(beta: Tensor, v: Tensor) -> None:
    if beta.shape != v.shape[:-1]:
        raise InputError(f"beta: expected {list(v.shape[:-1])} as in v, was {list(beta.shape)}")
    if beta.dtype not in _FLOATING:
        raise InputError(f"beta: expected a floating dtype, was {beta.dtype}")
    if beta.device != v.device:
        raise InputError(f"beta: expected on {v.device} as q is, was on {beta.device}")


def _check_state(S: Tensor, rows: int, k: Tensor, v: Tensor, p: int) -> None:
    H, K, V = v.shape[-2], k.shape[-1], v.shape[-1]
    expected = (rows, H, state_size(K, p), V)
    if S.shape != expected:
        raise InputError(
            f"state: expected {list(expected)} for batch {rows}, {H} value heads, p={p}, K={K} and V={V}, was "
            f"{list(S.shape)}: a state of another batch, p or width"
        )
    if S.dtype != accumulation_dtype(v.dtype):
        raise InputError(f"state: expected {accumulation_dtype(v.dtype)}, was {S.dtype}")
    if S.device != v.device:
        raise InputError(f"state: expected on {v.device} as q is, was on {S.device}")


def check_options(
    inputs: Inputs, lengths: Tensor | None, resets: Tensor | None, chunk_size: int | None, impl: str | None
) -> None:
    """Check everything but the attended tensors themselves, which have been checked."""
    q = inputs.q
    if impl not in (None, "triton", "chunked", "recurrent"):
        raise InputError(f"impl: expected 'triton', 'chunked', 'recurrent' or None, was {impl!r}")
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise InputError(f"chunk_size: expected a whole number from 1 on, was {chunk_size!r}")
    if lengths is not None and inputs.cu_seqlens is not None:
        raise InputError("lengths: expected None beside cu_seqlens, which has the lengths already")
    if lengths is not None and lengths.shape != q.shape[:1]:
        raise InputError(f"lengths: expected [{q.shape[0]}] as the batch, was {list(lengths.shape)}")
    if lengths is not None and (lengths.is_floating_point() or lengths.dtype == torch.bool):
        raise InputError(f"lengths: expected whole numbers, was {lengths.dtype}")
    if resets is not None and resets.shape != q.shape[:2]:
        raise InputError(f"resets: expected {list(q.shape[:2])} as q is, was {list(resets.shape)}")
    if resets is not None and resets.dtype != torch.bool:
        raise InputError(f"resets: expected torch.bool, was {resets.dtype}")
    if resets is not None and resets.device != q.device:
        raise InputError(f"resets: expected on {q.device} as q is, was on {resets.device}")


def check_rates(beta: Tensor | None) -> None:
    """Check rates of writing, where that does not make a device wait (see `zoo.debug_checks`)."""
    if beta is not None and known(beta) and beta.numel():
        for extreme in beta.detach().aminmax():  # NaN if there is one
            if not 0 <= float(extreme) <= 2:
                raise InputError(f"beta: expected rates from 0 to 2, found {float(extreme):g}")
