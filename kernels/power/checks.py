"""Checks of what a user passes to power attention: one line that names the argument, what it was, what it must be."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from zoo.kernels.errors import InputError
from zoo.kernels.power.call import Inputs
from zoo.kernels.power.expansion import state_size
from zoo.kernels.power.heads import Heads
from zoo.kernels.power.state import PowerState, check_state_size
from zoo.kernels.precision import accumulation_dtype

__all__ = [
    "check_arguments", "check_packing", "check_values", "debug_checks", "known", "resolve_offset", "values_unchecked",
]  # fmt: skip

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_checks_everywhere = False
_checks_nowhere = False


@contextmanager
def debug_checks() -> Iterator[None]:
    """Check values (gates, `cu_seqlens`, `lengths`) on every device, although that makes a GPU wait at each call.

    Without it they are checked on the CPU outside the compiler only.
    """
    global _checks_everywhere
    previous, _checks_everywhere = _checks_everywhere, True
    try:
        yield
    finally:
        _checks_everywhere = previous


@contextmanager
def values_unchecked() -> Iterator[None]:
    """Check no values: where shapes alone are asked for, of tensors that nobody has written."""
    global _checks_nowhere
    previous, _checks_nowhere = _checks_nowhere, True
    try:
        yield
    finally:
        _checks_nowhere = previous


def check_arguments(inputs: Inputs, *, p: int, normalize: bool, tokens: bool) -> None:
    """Check shapes, dtypes and devices; `tokens` says whether there is a token dimension."""
    q, k, v, log_g, S, z, offset, cu_seqlens = inputs
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_tensor(name, x, q, leading=2 if tokens else 1)
    if k.shape[-1] != q.shape[-1]:
        raise InputError(f"k: expected key width {q.shape[-1]} as in q, was {k.shape[-1]}")
    if type(p) is not int or p < 1:
        raise InputError(f"p: expected a whole number from 1 on, was {p!r}")
    if normalize and p % 2:
        raise InputError(f"normalize: expected False for odd p={p}, whose weights can be negative")
    heads = Heads(q.shape[-2], k.shape[-2], v.shape[-2])
    _check_heads(heads)
    check_state_size(k.shape[-1], v.shape[-1], p, offset=offset is not None)
    if log_g is not None:
        _check_gates(log_g, v)
    if cu_seqlens is not None:
        check_packing(q, cu_seqlens)
    if S is not None and z is not None:
        rows = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        _check_state(PowerState(S, z), inputs, rows, heads, p)


def _check_tensor(name: str, x: Tensor, q: Tensor, leading: int) -> None:
    if x.dim() != leading + 2:
        layout = f"[B, {'T, ' if leading == 2 else ''}H, {'V' if name == 'v' else 'K'}]"
        raise InputError(f"{name}: expected {layout}, was {list(x.shape)}")
    if x.dtype not in _FLOATING:
        raise InputError(f"{name}: expected a floating dtype, was {x.dtype}")
    if x.device != q.device:
        raise InputError(f"{name}: expected on {q.device} as q is, was on {x.device}")
    if x.shape[:leading] != q.shape[:leading]:
        hint = _layout_hint(q.shape, x.shape)
        raise InputError(
            f"{name}: expected {list(q.shape[:leading])} as in q before the heads, was {list(x.shape)}{hint}"
        )
    if x.dtype != q.dtype and not torch.is_autocast_enabled(q.device.type):
        raise InputError(f"{name}: expected {q.dtype} as q is, was {x.dtype}")


def _layout_hint(q: Sequence[int], x: Sequence[int]) -> str:
    """Say what the layout is, where shapes are those of PyTorch's `[B, H, T, K]` or of one in each layout."""
    if len(q) != 4 or len(x) != 4 or q[0] != x[0]:
        return ""
    grouped = q[2] == x[2] and q[1] % max(x[1], 1) == 0  # fewer heads of keys, and as many tokens
    if not grouped and (q[1], q[2]) != (x[2], x[1]):
        return ""
    return "; the layout is [B, T, H, K], of [B, H, T, K] pass x.transpose(1, 2), see docs/drop-in.md"


def _check_heads(heads: Heads) -> None:
    if min(heads) < 1:
        raise InputError(f"q, k, v: expected at least one head each, was {heads.query}, {heads.key}, {heads.value}")
    for name, count in (("k", heads.key), ("v", heads.value)):
        if heads.state % count:
            raise InputError(
                f"{name}: expected {count} heads to divide {heads.state} state heads (the more of k and v)"
            )
    if heads.output % heads.state:
        raise InputError(f"k: expected {heads.state} key/value heads to divide {heads.query} query heads")
    if heads.output % heads.query:
        raise InputError(f"q: expected {heads.query} query heads to divide {heads.output} key/value heads")


def _check_gates(log_g: Tensor, v: Tensor) -> None:
    if log_g.shape != v.shape[:-1]:
        hint = _layout_hint(v.shape, (*log_g.shape, v.shape[-1]))
        raise InputError(f"log_g: expected {list(v.shape[:-1])} as in v, was {list(log_g.shape)}{hint}")
    if log_g.dtype not in (torch.float32, torch.float64):
        raise InputError(f"log_g: expected torch.float32, was {log_g.dtype}")
    if log_g.device != v.device:
        raise InputError(f"log_g: expected on {v.device} as q is, was on {log_g.device}")


def check_packing(q: Tensor, cu_seqlens: Tensor) -> None:
    """Check boundaries of sequences that are packed into one row `q [1, T, Hq, K]`."""
    if q.shape[0] != 1:
        raise InputError(f"cu_seqlens: expected sequences packed into batch 1, q has batch {q.shape[0]}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise InputError(f"cu_seqlens: expected [sequences + 1], at least one sequence, was {list(cu_seqlens.shape)}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise InputError(f"cu_seqlens: expected torch.int32, was {cu_seqlens.dtype}")


def _check_state(state: PowerState, inputs: Inputs, rows: int, heads: Heads, p: int) -> None:
    (q, k, v, *_), has_offset = inputs, inputs.offset is not None
    K, V, dtype = k.shape[-1], v.shape[-1], accumulation_dtype(q.dtype)
    D = state_size(K, p, offset=has_offset)
    for name, x, expected in (
        ("S", state.S, (rows, heads.state, D, V)),
        ("z", state.z, (rows, heads.state, D)),
    ):
        if x.shape != expected:
            raise InputError(
                f"state.{name}: expected {list(expected)} for batch {rows}, {heads.state} heads, p={p}, K={K}"
                f"{' and an offset' if has_offset else ''} (D={D}) and V={V}, was {list(x.shape)}: a state of another "
                f"batch, p or width{', or without offset' if has_offset else ''}"
            )
        if x.dtype != dtype:
            raise InputError(f"state.{name}: expected {dtype}, was {x.dtype}")
        if x.device != q.device:
            raise InputError(f"state.{name}: expected on {q.device} as q is, was on {x.device}")


def resolve_offset(offset: float | Tensor, q: Tensor, scale: float) -> Tensor | None:
    """One offset a query head `[Hq]`, in the accumulation dtype; None for the number 0.

    Raises:
        InputError: names the argument, what it was and what it must be.
    """
    heads, dtype = q.shape[-2], accumulation_dtype(q.dtype)
    if not isinstance(offset, Tensor):
        if not isinstance(offset, (int, float)) or not -math.inf < offset < math.inf:  # what compilers trace
            raise InputError(f"offset: expected a finite number or a tensor of one a query head, was {offset!r}")
        if offset == 0:
            return None
        offset = torch.full((heads,), float(offset), dtype=dtype, device=q.device)
    if offset.shape != (heads,):
        raise InputError(f"offset: expected [{heads}], one a query head, was {list(offset.shape)}")
    if not offset.is_floating_point():
        raise InputError(f"offset: expected a floating dtype, was {offset.dtype}")
    if offset.device != q.device:
        raise InputError(f"offset: expected on {q.device} as q is, was on {offset.device}")
    if scale == 0:
        raise InputError("scale: expected other than 0 beside an offset, was 0")
    return offset.to(dtype)


def known(x: Tensor) -> bool:
    """Whether looking at values is free: real data on the CPU, outside the compiler."""
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x):  # as in torch.func.vmap
        return False
    if _checks_nowhere or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    return x.device.type == "cpu" or (_checks_everywhere and x.device.type != "meta")


def check_values(log_g: Tensor | None, cu_seqlens: Tensor | None, lengths: Tensor | None, T: int) -> None:
    """Check values, where that does not make a device wait (see `debug_checks`)."""
    if log_g is not None and known(log_g) and log_g.numel():
        largest = float(log_g.detach().max())  # NaN if there is one
        if not largest <= 0:
            raise InputError(f"log_g: expected log gates of at most 0, found {largest:g}")
    if cu_seqlens is not None and known(cu_seqlens):
        ends = cu_seqlens.tolist()
        if ends[0] != 0 or any(a > b for a, b in pairwise(ends)):
            raise InputError(f"cu_seqlens: expected to start at 0 and never to decrease, was {_abridge(ends)}")
        if ends[-1] != T:
            raise InputError(f"cu_seqlens: expected to end at T={T}, ends at {ends[-1]}")
    if lengths is not None and known(lengths) and bool(((lengths < 0) | (lengths > T)).any()):
        raise InputError(f"lengths: expected from 0 to T={T}, was {_abridge(lengths.tolist())}")


def _abridge(values: list[int]) -> str:
    shown = ", ".join(str(value) for value in values[:8])
    return f"[{shown}{', ...' if len(values) > 8 else ''}]"
