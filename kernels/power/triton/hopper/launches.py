"""What launches the Hopper kernels, inside an op: the compiler does not know Gluon."""

import torch
import triton
from torch import Tensor

from zoo.kernels.launch import launch
from zoo.kernels.triton_support import INTERPRETED

__all__ = [
    "attend",
    "chunk_sums",
    "differentiate",
    "fuses",
    "gradients_from_states",
    "outputs_from_states",
    "supports_hopper",
]

WARPS, STAGES = 4, 2
BLOCK = 32 * WARPS  # tokens a program
SUMS_PER_TRIP = 2


def supports_hopper(x: Tensor, K: int, V: int, p: int) -> bool:
    """Whether these kernels take inputs like x."""
    if INTERPRETED or x.device.type != "cuda" or torch.version.hip is not None:
        return False
    if x.dtype != torch.bfloat16 or p != 2 or K not in (64, 128) or V not in (64, 128):
        return False
    return torch.cuda.get_device_capability(x.device)[0] == 9


def _trips(K: int) -> int:
    """Tiles that a loop's trip takes: more leave the tensor cores idle less often, and take more shared memory."""
    return 4 if K == 64 else 2


def outputs_from_states(
    x: Tensor, x_columns: Tensor, states: Tensor, bounds: Tensor, heads: int, V: int, rows: int,
    first: bool, packed: bool,
) -> Tensor:  # fmt: skip
    """`S (c * m(x))` `[B, T, heads, V]` in float32, with neither decay nor scale; see `outputs_kernel`.

    Args:
        x: `[B, T, Hx, K]`.
        x_columns: `[slots, Hx, K, C]`.
        states: `[slots, Hs, rows (V + 1)]`.
        bounds: of packed chunks; anything else where there are none.
        heads: of the output.
        V: values.
        rows: of the tiled layout.
        first: whether sequences' first chunks have states; otherwise what is returned for them is undefined.
        packed: whether sequences are packed.
    """
    from zoo.kernels.power.triton.hopper.outputs import outputs_kernel

    (B, T, x_heads, K), (slots, states_count), C = x.shape, states.shape[:2], x_columns.shape[-1]
    y = x.new_empty(B, T, heads, V, dtype=torch.float32)
    blocks = triton.cdiv(min(C, T), BLOCK)
    launch(
        outputs_kernel, (blocks * (V // 64) * heads * slots,),
        (x, x_columns, states, y, bounds), (T, C, rows, x_heads, heads, states_count, blocks),
        K=K, V=V, FIRST=first, PACKED=packed, TRIPS=_trips(K), STAGES=STAGES, WARPS=WARPS,
        warps=WARPS,
    )  # fmt: skip
    return y


def gradients_from_states(
    y: Tensor, x_columns: Tensor, states: Tensor, bounds: Tensor, heads: int, rows: int, first: bool,
    packed: bool,
) -> Tensor:  # fmt: skip
    """`sum_i x_i (S_i y)` `[B, T, heads, K]` in float32 for y `[B, T, Hy, V]`; the rest as in `outputs_from_states`."""
    from zoo.kernels.power.triton.hopper.gradients import gradients_kernel

    (B, T, y_heads, V), (slots, states_count) = y.shape, states.shape[:2]
    _, x_heads, K, C = x_columns.shape
    dx = y.new_empty(B, T, heads, K, dtype=torch.float32)
    blocks = triton.cdiv(min(C, T), BLOCK)
    launch(
        gradients_kernel, (blocks * (K // 64) * heads * slots,),
        (y, x_columns, states, dx, bounds), (T, C, rows, y_heads, x_heads, heads, states_count, blocks),
        K=K, V=V, FIRST=first, PACKED=packed, TRIPS=_trips(max(K, V)), STAGES=STAGES, WARPS=WARPS,
        warps=WARPS,
    )  # fmt: skip
    return dx


def chunk_sums(
    x_columns: Tensor, x_decayed: Tensor, y: Tensor, bounds: Tensor, states: int, rows: int, packed: bool,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """S's part of `sums [slots, Hs, rows (V + 1)]`; z's is undefined. See `sums_kernel`.

    Args:
        x_columns: `[slots, Hx, K, C]`.
        x_decayed: the same times what is left of each token `[slots, Ho or Hs, K, C]`.
        y: `[B, T, Hy, V]`.
        bounds: as in `outputs_from_states`, like the rest.
        states: Hs.
        dtype: of the sums.
    """
    from zoo.kernels.power.triton.hopper.sums import sums_kernel

    (_, T, y_heads, V), (slots, x_heads, K, C) = y.shape, x_columns.shape
    heads = x_decayed.shape[1]
    sums = y.new_empty(slots, states, rows * (V + 1), dtype=dtype)
    blocks = K // 16
    launch(
        sums_kernel, (blocks * (blocks + 1) // 4 * (V // 64) * states * slots,),
        (x_columns, x_decayed, y, sums, bounds),
        (T, C, rows, x_heads, heads // x_heads, y_heads, heads // y_heads, states, heads // states),
        K=K, V=V, PER_TRIP=SUMS_PER_TRIP, PACKED=packed, warps=8,
    )  # fmt: skip
    return sums


def fuses(K: int, V: int) -> bool:
    """Whether one kernel takes both what states give and what the chunk gives: not where it lacks shared memory."""
    return K == V == 64


def attend(
    x: Tensor, x_columns: Tensor, other: Tensor, values: Tensor, states: Tensor, gates: Tensor, weights: Tensor,
    y: Tensor, exact_y: Tensor | None, denominator: Tensor | None, bounds: Tensor, scale: float, size: int, slots: int,
    partners: int, state_heads: int, rows: int, *, first: bool, reverse: bool, packed: bool,
) -> None:  # fmt: skip
    """Fill outputs y, or gradients of values: see `attend_kernel`.

    Absent states (with their columns) and gates are empty.
    """
    from zoo.kernels.power.triton.hopper.attend import attend_kernel

    (_, T, x_heads, K), (heads, V) = x.shape, y.shape[2:]
    blocks = triton.cdiv(min(size, T), BLOCK)
    launch(
        attend_kernel, (blocks * heads * slots,),
        (x, x_columns, other, values, states, gates, weights, y, y if exact_y is None else exact_y,
         gates if denominator is None else denominator, bounds),
        (T, size, rows, scale, heads, heads // state_heads, partners // state_heads, heads // x_heads,
         partners // other.shape[2], partners // values.shape[2], blocks),
        K=K, V=V, HAS_STATES=states.numel() > 0, FIRST=first, NORMALIZE=denominator is not None,
        EXACT=exact_y is not None, GATED=gates.numel() > 0, REVERSE=reverse, PACKED=packed, TRIPS=_trips(K),
        WARPS=WARPS, warps=WARPS,
    )  # fmt: skip


def differentiate(
    x: Tensor, x_columns: Tensor, own: Tensor, other: Tensor, values: Tensor, states: Tensor, gates: Tensor,
    factors: Tensor, delta: Tensor, dx: Tensor, along: Tensor, bounds: Tensor, size: int, slots: int, partners: int,
    state_heads: int, rows: int, *, first: bool, has_normaliser: bool, reverse: bool, packed: bool,
) -> None:  # fmt: skip
    """Fill gradients dx of queries or keys, and their product with them: see `differentiate_kernel`.

    What is absent is empty, as in `attend`, and so is delta if the output is not normalised.
    """
    from zoo.kernels.power.triton.hopper.differentiate import differentiate_kernel

    (_, T, x_heads, K), heads, (own_heads, V) = x.shape, dx.shape[2], own.shape[2:]
    blocks = triton.cdiv(min(size, T), BLOCK)
    launch(
        differentiate_kernel, (blocks * heads * slots,),
        (x, x_columns, own, other, values, states, gates, factors, delta, dx, along, bounds),
        (T, size, rows, heads, heads // state_heads, partners // state_heads, heads // x_heads, heads // own_heads,
         partners // other.shape[2], partners // values.shape[2], blocks, slots),
        K=K, V=V, HAS_STATES=states.numel() > 0, FIRST=first, NORMALIZE=delta.numel() > 0,
        HAS_NORMALISER=has_normaliser, GATED=gates.numel() > 0, REVERSE=reverse, PACKED=packed, TRIPS=_trips(K),
        WARPS=WARPS, warps=WARPS,
    )  # fmt: skip
