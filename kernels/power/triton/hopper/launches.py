"""What launches the Hopper kernels, inside an op: the compiler does not know Gluon."""

import torch
import triton
from torch import Tensor

from zoo.kernels.power.triton.launch import launch

__all__ = [
    "attend_chunks",
    "chunk_sums",
    "differentiate_chunks",
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
    if x.device.type != "cuda" or x.dtype != torch.bfloat16 or p != 2 or K not in (64, 128) or V not in (64, 128):
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(x.device)[0] == 9


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


def _attend(
    x: Tensor, x_columns: Tensor, other: Tensor, values: Tensor, states: Tensor, gates: Tensor, weights: Tensor,
    y: Tensor, exact_y: Tensor | None, denominator: Tensor | None, bounds: Tensor, scale: float, size: int, slots: int,
    partners: int, state_heads: int, rows: int, *, first: bool, reverse: bool, packed: bool,
) -> None:  # fmt: skip
    """Fill outputs, or gradients of values: see `attend_kernel`."""
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


def _differentiate(
    x: Tensor, x_columns: Tensor, own: Tensor, other: Tensor, values: Tensor, states: Tensor, gates: Tensor,
    factors: Tensor, delta: Tensor, dx: Tensor, along: Tensor, bounds: Tensor, size: int, slots: int, partners: int,
    state_heads: int, rows: int, *, first: bool, has_normaliser: bool, reverse: bool, packed: bool,
) -> None:  # fmt: skip
    """Fill gradients of queries or keys, and their product with them: see `differentiate_kernel`."""
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


def _outputs(q: Tensor, v: Tensor, heads: int, normalize: bool, exact: bool) -> list[Tensor]:
    """Room for what `attend_chunks` returns."""
    shape = (*q.shape[:2], heads, v.shape[3])
    outputs = [v.new_empty(shape)]
    if exact:
        outputs.append(v.new_empty(shape, dtype=torch.float32))
    if normalize:
        outputs.append(v.new_empty(shape[:3], dtype=torch.float32))
    return outputs


def attend_chunks(
    q: Tensor, q_columns: Tensor, k: Tensor, v: Tensor, states: Tensor, gates: Tensor, bounds: Tensor,
    scale: float, size: int, slots: int, heads: int, state_heads: int, rows: int, first: bool, normalize: bool,
    exact: bool, packed: bool,
) -> list[Tensor]:  # fmt: skip
    """Outputs `[B, T, heads, V]`, the same in float32 if exact, and denominators `[B, T, heads]` if normalised.

    Absent states (with their columns) and gates are empty.
    """
    outputs = _outputs(q, v, heads, normalize, exact)
    _attend(
        q, q_columns, k, v, states, gates, gates, outputs[0], outputs[1] if exact else None,
        outputs[-1] if normalize else None, bounds, scale, size, slots, state_heads, state_heads, rows,
        first=first, reverse=False, packed=packed,
    )  # fmt: skip
    return outputs


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, size: int, slots: int, heads: int, state_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for what `differentiate_chunks` returns: gradients are float32 where those of several heads are added."""

    def gradient(x: Tensor, count: int) -> Tensor:
        dtype = x.dtype if x.shape[2] == count else torch.float32
        return x.new_empty(*x.shape[:2], count, x.shape[3], dtype=dtype)

    q_along, k_along = (
        q.new_empty((2, slots, count, size) if gates.numel() > 0 else (0,), dtype=torch.float32)
        for count in (heads, state_heads)
    )
    return gradient(q, heads), gradient(k, state_heads), gradient(v, state_heads), q_along, k_along


def differentiate_chunks(
    q: Tensor, q_columns: Tensor, k: Tensor, k_columns: Tensor, v: Tensor, do: Tensor, factors: Tensor, delta: Tensor,
    states: Tensor, dstates: Tensor, gates: Tensor, bounds: Tensor, size: int, slots: int, heads: int, state_heads: int,
    rows: int, first: bool, has_normaliser: bool, packed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries `[B, T, heads, K]`, keys and values, and products of the former two with queries and keys.

    Args:
        q, k, v: `[B, T, H, K or V]`.
        q_columns, k_columns: the same with tokens last; empty where there are no states, or gradients of states.
        do, factors, delta: the output's gradient, see `OutputGradient`; delta is empty if not normalised.
        states, dstates: before each chunk, and their gradients after it, or empty.
        gates: summed, or empty.
        bounds: as in `outputs_from_states`, like the rest.
        size, slots: of chunks.
        heads, state_heads: of outputs and states.
        has_normaliser: whether the states' gradients have one.
    """
    dq, dk, dv, q_along, k_along = gradients = _gradients(q, k, v, gates, size, slots, heads, state_heads)
    _differentiate(
        q, q_columns, do, k, v, states, gates, factors, delta, dq, q_along, bounds, size, slots, state_heads,
        state_heads, rows, first=first, has_normaliser=delta.numel() > 0, reverse=False, packed=packed,
    )  # fmt: skip
    _differentiate(
        k, k_columns, v, q, do, dstates, gates, factors, delta, dk, k_along, bounds, size, slots, heads,
        state_heads, rows, first=True, has_normaliser=has_normaliser, reverse=True, packed=packed,
    )  # fmt: skip
    _attend(
        k, k_columns, q, do, dstates, gates, factors, dv, None, None, bounds, 1.0, size, slots, heads,
        state_heads, rows, first=True, reverse=True, packed=packed,
    )  # fmt: skip
    return gradients
