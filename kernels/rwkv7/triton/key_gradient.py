"""Gradients of r, decays, k, kappa and a, from the states on both sides of a chunk and what is written in it."""

import triton
import triton.language as tl

from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.rwkv7.triton.decays import boundary_decays, forgotten
from zoo.kernels.rwkv7.triton.pairs import add_pair_gradients

__all__ = ["key_gradient_kernel"]


@triton.jit(do_not_specialize=["T"])
def key_gradient_kernel(
    r, log_w, k, v, kappa, a, sums, removed, do, dheld, dscores, states, dstates, alongs, dr, dlog_w, dk, dkappa, da,
    T, HEADS,
    C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, VALUES: tl.constexpr, PARTS: tl.constexpr,
    FIRST: tl.constexpr, LEVELS: tl.constexpr, LOWEST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dr, dlog_w, dk, dkappa and da `[B T, H, K]`, from removed u, do, dheld and dscores (see `value_gradient.py`).

    alongs are sums of states times their gradients in PARTS (see the delta rule's `states_kernel`). A program takes
    BLOCK channels of one chunk and head, and VALUES values at a time.
    """
    slot, head, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, C, sums, False)
    place, stride, first = slot * HEADS + head, HEADS * K, (start * HEADS + head) * K
    dtype: tl.constexpr = states.dtype.element_ty
    at, channels = tl.arange(0, C), block * BLOCK + tl.arange(0, BLOCK)
    here = (at < tokens)[:, None]
    zeros = tl.zeros((C, BLOCK), tl.float32)
    grad_r, grad_k, grad_b, grad_kappa = zeros, zeros, zeros, zeros
    for part in range(K // VALUES):  # not unrolled, which spares registers
        values = part * VALUES + tl.arange(0, VALUES)
        of_token = first + at[:, None] * stride + values[None, :]
        of_state = place * K * K + channels[:, None] * K + values[None, :]
        S = tl.trans(tl.load(states + of_state))
        grad_r = tl.dot(tl.load(do + of_token, here, 0).to(dtype), S, grad_r, input_precision=PRECISION)
        grad_kappa = tl.dot(tl.load(dheld + of_token, here, 0), S, grad_kappa, input_precision=PRECISION)
        dS = tl.trans(tl.load(dstates + of_state))
        grad_b = tl.dot(tl.load(removed + of_token, here, 0), dS, grad_b, input_precision=PRECISION)
        grad_k = tl.dot(tl.load(v + of_token, here, 0).to(dtype), dS, grad_k, input_precision=PRECISION)

    counts = forgotten(log_w + first, at, tokens, stride, LOWEST, FIRST > 0)
    sums += first + block * BLOCK
    gates = (stride, tokens, tl.arange(0, BLOCK))
    to_r, to_kappa, to_end, whole = boundary_decays(sums, at, gates, counts, FIRST > 0)
    places = first + at[:, None] * stride + channels[None, :]
    grad_r *= to_r
    grad_kappa *= to_kappa
    grad_b *= to_end
    grad_k *= to_end
    removal, rate = tl.load(kappa + places, here, 0), tl.load(a + places, here, 0)
    before = removal * grad_kappa
    # Sums of what is kept cancel, to float32's digits, which spares the registers of a tile.
    kept = tl.load(k + places, here, 0) * grad_k - removal.to(tl.float32) * rate * grad_b
    after = tl.load(r + places, here, 0) * grad_r - kept
    kept = tl.sum(kept, 0)
    found = (grad_kappa, grad_r, grad_b, grad_k, before, after)
    tokens_at = (kappa + places, r + places, a + places, k + places)
    grad_kappa, grad_r, grad_b, grad_k, before, after = add_pair_gradients(
        found, dscores + place * 4 * C * C, tokens_at, (sums, stride, tokens), FIRST, LEVELS, dtype, PRECISION
    )
    tl.store(dr + places, grad_r.to(dr.dtype.element_ty), here)
    tl.store(dk + places, grad_k.to(dk.dtype.element_ty), here)
    removal, rate = tl.load(kappa + places, here, 0), tl.load(a + places, here, 0)  # once more, as above
    tl.store(dkappa + places, (grad_kappa - rate * grad_b).to(dkappa.dtype.element_ty), here)
    tl.store(da + places, (-(removal * grad_b)).to(da.dtype.element_ty), here)
    parts = place * PARTS + tl.arange(0, PARTS)
    along = tl.sum(tl.load(alongs + parts[:, None] * K + channels[None, :]), 0)
    # A token's kappa reads what was before its own decay.
    gradient = tl.cumsum(after + before, 0, reverse=True) - before + (kept + whole * along)[None, :]
    given = tl.load(log_w + places, here, 0)
    tl.store(dlog_w + places, tl.where(given <= LOWEST, 0.0, gradient), here)
