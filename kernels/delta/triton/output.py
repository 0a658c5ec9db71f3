"""The output: states are taken through the chunks of a group once more, and read by queries on the way."""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.chunk_map import (
    begin,
    decay_of_chunk,
    decays_of_channels,
    enter_chunk,
    factors_of_tokens,
    load_columns,
    load_rows,
    read_state,
    solve_columns,
    write_state,
)
from zoo.kernels.power.triton.operands import as_operand

__all__ = ["output_kernel"]


@triton.jit(do_not_specialize=["T", "slots", "LENGTH", "rooms"])
def output_kernel(
    left, right, decays, rates, inverses, values, queries, weights, initial, starts, o, final, bounds,
    T, slots, LENGTH, scale, Q_HEADS, K_HEADS, HEADS, rooms,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
    CHANNELS: tl.constexpr, RATED: tl.constexpr, PARTS: tl.constexpr, READS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, HAS_STARTS: tl.constexpr, WANTS_FINAL: tl.constexpr,
):  # fmt: skip
    """o `[B T, Hv, V]`, and what is left of each sequence's state: `o = Q S + W E (X + M S)`, so that no state is
    stored.

    The rest is as in `states_kernel`. starts may be more rooms than there are groups: those are kept, too, and zero.
    """
    scale = tl.cast(scale, tl.float32)
    OF_TOKENS: tl.constexpr = not CHANNELS
    n_group, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    at, channels = tl.arange(0, C), tl.arange(0, K)
    whole = channels[None, :] * V + columns[:, None]
    exists = channels[None, :] >= 0
    S = tl.zeros((BLOCK, K), tl.float32)
    if HAS_STARTS:
        S = tl.load(starts + (n_group.to(tl.int64) * HEADS + head) * K * V + whole)
    for row in range(n_group + (tl.num_programs(0) if HAS_STARTS else 0), rooms, tl.num_programs(0)):
        tl.store(starts + (row * HEADS + head).to(tl.int64) * K * V + whole, tl.zeros((BLOCK, K), tl.float32))
    DTYPE: tl.constexpr = weights.dtype.element_ty
    keeps: tl.constexpr = (GATED, CHANNELS, C, False)
    first = n_group * LENGTH
    group = (first, tl.minimum(LENGTH, slots - first))
    ahead = decay_of_chunk(decays, 0, group, (head, HEADS), keeps)
    for n in range(group[1]):
        slot, start, tokens, sequence, begins, ends = enter_chunk(n, group, (slots, T, C), bounds, False, PACKED)
        place = slot * HEADS + head
        outside = (sequence * HEADS + head) * K * V + whole
        S = begin(S, initial, (outside, exists), begins, HAS_INITIAL)
        decay = decays_of_channels(decays, place, ahead, K, CHANNELS)
        ahead = decay_of_chunk(decays, n + 1, group, (head, HEADS), keeps)
        kept = factors_of_tokens(decays, place, C, GATED and OF_TOKENS)
        rate = factors_of_tokens(rates, place, C, RATED)
        chunk = (place, start, tokens, head, HEADS)
        value = load_columns(values, chunk, columns, tokens > 0, C, V).to(tl.float32)
        if READS:
            rows = load_rows(right, chunk, K_HEADS, C, K, OF_TOKENS).to(DTYPE)
            value = read_state(S, value, rows, kept, OF_TOKENS, PRECISION)
        if PARTS:
            value = solve_columns(value, inverses, place, PARTS, False, PRECISION)
        asking = tl.trans(load_rows(queries, chunk, Q_HEADS, C, K, OF_TOKENS).to(DTYPE))
        y = tl.dot(as_operand(S, DTYPE, PRECISION), asking, input_precision=PRECISION)
        if OF_TOKENS:
            y *= scale * kept
        weight = tl.trans(load_rows(weights, chunk, 1, C, C, False))
        y = tl.dot(as_operand(value, DTYPE, PRECISION), weight, y, input_precision=PRECISION)
        if GATED:
            S *= decay
        if RATED:
            value *= rate
        S = write_state(S, value, load_rows(left, chunk, K_HEADS, C, K, OF_TOKENS).to(DTYPE), PRECISION)
        of_tokens = (start * HEADS + head) * V + at[None, :] * HEADS * V + columns[:, None]
        tl.store(o + of_tokens, y.to(o.dtype.element_ty), (at < tokens)[None, :])
        if WANTS_FINAL:
            tl.store(final + outside, S, exists & ends & (tokens > 0))
