"""What a chunk makes of the state before it, whatever that is.

With the scores `A_b, A_k` of kappa and `B_b, B_k` of r with what is removed and what is added, a chunk removes
`u = (1 - A_b)^-1 (kappa' S + A_k v)`, where kappa' decays from the chunk's start, so that with `b'` and `k'`, which
decay to its end, `S_end = decay S + R^T (kappa' S) + P^T v`, `R = (1 - A_b)^-T b'` and `P = k' + A_k^T R`.
"""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.prepare import solve_transposed
from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.operands import as_operand
from zoo.kernels.rwkv7.triton.decays import boundary_decays, forgotten, load_rows

__all__ = ["maps_kernel"]


@triton.jit(do_not_specialize=["T"])
def maps_kernel(
    r, log_w, k, v, kappa, a, sums, inverses, scores, removes, keeps, receives, wholes, additions, T, HEADS,
    C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr, LOWEST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """removes `kappa'`, keeps R and receives `r'`, all `[slots, H, C, K]`, wholes, the decay of a whole chunk
    `[slots, H, K]`, and additions `P^T v [slots, H, K, K]`.

    The rest is as in `scores_kernel`. A program takes one chunk and head, BLOCK values at a time.
    """
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, tokens, _ = chunk_bounds(slot, T, C, sums, False)
    place, stride, first = slot * HEADS + head, HEADS * K, (start * HEADS + head) * K
    dtype: tl.constexpr = removes.dtype.element_ty
    at, channels = tl.arange(0, C), tl.arange(0, K)
    square = at[:, None] * C + at[None, :]
    of_key = place * C * K + at[:, None] * K + channels[None, :]
    counts = forgotten(log_w + first, at, tokens, stride, LOWEST, FIRST > 0)
    gates = (stride, tokens, channels)
    to_r, to_kappa, to_end, whole = boundary_decays(sums + first, at, gates, counts, FIRST > 0)
    tl.store(wholes + place * K + channels, whole)
    reader = load_rows(r + first, at, tokens, stride, K)
    tl.store(receives + of_key, as_operand(reader * to_r, dtype, PRECISION))
    removal = load_rows(kappa + first, at, tokens, stride, K)
    tl.store(removes + of_key, as_operand(removal * to_kappa, dtype, PRECISION))
    b = -removal.to(tl.float32) * load_rows(a + first, at, tokens, stride, K)
    inverse = tl.load(inverses + place * C * C + square)
    kept = as_operand(solve_transposed(inverse, b * to_end, PRECISION), dtype, PRECISION)
    tl.store(keeps + of_key, kept)
    met = tl.trans(tl.load(scores + place * 3 * C * C + square))
    added = load_rows(k + first, at, tokens, stride, K) * to_end
    added = tl.trans(as_operand(tl.dot(met, kept, added, input_precision=PRECISION), dtype, PRECISION))
    for block in range(K // BLOCK):
        values = block * BLOCK + tl.arange(0, BLOCK)
        of_token = first + at[:, None] * stride + values[None, :]
        value = tl.load(v + of_token, (at < tokens)[:, None], 0).to(dtype)
        addition = tl.dot(added, value, input_precision=PRECISION)
        tl.store(additions + place * K * K + channels[:, None] * K + values[None, :], addition.to(dtype))
