# mypy: disable-error-code="assignment"
"""Errors of tokens on a power state, one stretch of tokens after the other: what only the delta rule needs.

With `r_t` what the state before token t and the gates hold for its key, `e_t = v_t - r_t`, and `u_t = beta_t e_t` is
written. Given all of u, the rest is power attention with values u. Within a stretch of L tokens
`e = (1 + A)^-1 (v - y)`, with y what the state before it holds for its keys, and
`A_ij = exp(G_i - G_j) (k_i . k_j)^p beta_j` for j < i. The inverses of all stretches are made side by side, in blocks
of C tokens: first those on the diagonal, then, by columns, those below. Then each stretch takes three launches:

1. read: y, by blocks of tokens and shares of the state's rows, so that many programs do it; the next launch adds up.
2. solve: the product with the inverse.
3. write: `S <- decay S + sum_t decay_t m(k_t) u_t^T`, by tiles of the state.

Packed sequences are in the order of their lengths, so that those with many stretches are the first ones, and only
those have a state.

The state is tiled as in power attention's `layout`, S alone, in float32 and, for products, in their dtype with tiles
times their weights, so that nothing is weighted when it is read.
"""

import triton
import triton.language as tl

from zoo.kernels.delta.triton.prepare import inverse_below, solve
from zoo.kernels.power.triton.chunks import chunk_bounds
from zoo.kernels.power.triton.decay import decay, small_power
from zoo.kernels.power.triton.from_state import pass_on
from zoo.kernels.power.triton.monomials import outer_count, outer_scalars, outer_with_decay, power
from zoo.kernels.power.triton.operands import as_operand

__all__ = [
    "decay_from_start", "find_stretch", "inverse_kernel", "join_kernel", "read_kernel", "solve_kernel",
    "wait_for_launch", "write_kernel",
]  # fmt: skip


@triton.jit
def _scores(readers, keys, gates, gates_low, later, earlier, P: tl.constexpr, GATED: tl.constexpr,
            EXACT_GATES: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """What readers `[C, K]` at tokens `later` read of keys at `earlier` ones `[C, C]`, callers mask later ones."""
    scores = power(tl.dot(readers, tl.trans(keys), input_precision=PRECISION), P)
    if GATED:
        scores *= decay(gates, gates_low, later[:, None], earlier[None, :], EXACT_GATES)
    return scores


@triton.jit
def decay_from_start(gates, gates_low, token, mask, EXACT_GATES: tl.constexpr):
    """What is left at tokens of what stood at their stretch's start; 1 where mask is false."""
    left = tl.exp2(tl.load(gates + token, mask, 0))
    if EXACT_GATES:
        left *= small_power(tl.load(gates_low + token, mask, 0))
    return left


@triton.jit
def _blocks(count):
    """Of a triangle with so many on its diagonal."""
    return count * (count + 1) // 2


@triton.jit
def _block(inverses, row, column, C: tl.constexpr):
    """Pointers to one block of a triangle's. Blocks that are side by side are rows of tokens."""
    at = tl.arange(0, C)
    return inverses + _blocks(row) * C * C + at[:, None] * C * (row + 1) + column * C + at[None, :]


@triton.jit
def find_stretch(row, index, T, L, bounds, sequences, PACKED: tl.constexpr):
    """The slot of a sequence's stretch of this index, its first token as a row of `[B T]`, and its number of tokens.

    No tokens where the sequence has no such stretch. sequences: of each packed one the slots of its first stretch and
    after its last `[sequences, 2]`.
    """
    if PACKED:
        slot = (tl.load(sequences + row * 2) + index).to(tl.int64)
        exists = slot < tl.load(sequences + row * 2 + 1)
        slot = tl.where(exists, slot, 0)
    else:
        slot, exists = row.to(tl.int64) * tl.cdiv(T, L) + index, True
    start, tokens, _ = chunk_bounds(slot, T, L, bounds, PACKED)
    return slot, start, tl.where(exists, tokens, 0)


@triton.jit(do_not_specialize=["T", "KEYS", "HEADS"])
def inverse_kernel(
    k, gates, gates_low, beta, inverses, arrived, bounds, T, L, KEYS, HEADS, ARRIVALS,
    C: tl.constexpr, K: tl.constexpr, P: tl.constexpr, LEVELS: tl.constexpr, GATED: tl.constexpr,
    EXACT_GATES: tl.constexpr, EXACT: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Blocks on the diagonal of inverses `[slots, Hv, blocks C C]`, of the blocks of a triangle row by row.

    From k `[B T, Hk, K]`, beta `[B T, Hv]` and sums of gates `[slots, Hv, L]`. A program takes a block. EXACT: in
    float64 until it is stored, as in `prepare_kernel`. And zeros in arrived `[slots, Hv, ARRIVALS]`, for `read_kernel`.
    """
    chunk, slot, head = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, L, bounds, PACKED)
    if chunk * C >= tokens:
        return
    if chunk == 0:
        for number in range(ARRIVALS):
            tl.store(arrived + (slot * HEADS + head) * ARRIVALS + number, 0)
    NARROW: tl.constexpr = tl.bfloat16 if k.dtype.element_ty == tl.bfloat16 else tl.float32
    PRODUCTS: tl.constexpr = tl.float64 if EXACT else NARROW
    DIGITS: tl.constexpr = "ieee" if EXACT else PRECISION
    at, channels = tl.arange(0, C), tl.arange(0, K)
    here = chunk * C + at
    exists = here < tokens
    k += start * KEYS * K + head * KEYS // HEADS * K
    gates += (slot * HEADS + head) * L
    gates_low += (slot * HEADS + head) * L
    keys = tl.load(k + here[:, None] * KEYS * K + channels[None, :], exists[:, None], 0).to(PRODUCTS)
    rates = tl.load(beta + (start + here) * HEADS + head, exists, 0).to(tl.float32)
    system = _scores(keys, keys, gates, gates_low, here, here, P, GATED, EXACT_GATES, DIGITS) * rates[None, :]
    # Of float16, which has as many digits as TensorFloat32, where inverses are.
    SOLVED: tl.constexpr = system.dtype if EXACT else inverses.dtype.element_ty
    inverse = inverse_below(tl.where(at[:, None] > at[None, :], system, 0.0), LEVELS, SOLVED, DIGITS)
    inverses += (slot * HEADS + head) * _blocks(L // C) * C * C
    tl.store(_block(inverses, chunk, chunk, C), as_operand(inverse, inverses.dtype.element_ty, PRECISION))


@triton.jit
def _add_below(total, system, inverses, row, column, C: tl.constexpr, PRECISION: tl.constexpr):
    """`total + system X`, for a block X of inverses."""
    inverse = tl.load(_block(inverses, row, column, C))
    # Of float16: it has as many digits as TensorFloat32.
    return tl.dot(as_operand(system, inverse.dtype, PRECISION), inverse, total, input_precision=PRECISION)


@triton.jit
def _store_below(inverses, row, column, total, C: tl.constexpr, PRECISION: tl.constexpr):
    """Store `-X_ii total` as a block of inverses."""
    inverse = tl.load(_block(inverses, row, row, C))
    found = -tl.dot(inverse, as_operand(total, inverse.dtype, PRECISION), input_precision=PRECISION)
    tl.store(_block(inverses, row, column, C), as_operand(found, inverse.dtype, PRECISION))


@triton.jit(do_not_specialize=["T", "KEYS", "HEADS"])
def join_kernel(
    k, gates, gates_low, beta, inverses, bounds, T, L, KEYS, HEADS,
    C: tl.constexpr, K: tl.constexpr, P: tl.constexpr, GATED: tl.constexpr, EXACT_GATES: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Blocks of inverses below the diagonal, `X_ij = -X_ii sum_m A_im X_mj`. A program takes two columns j, for which
    it computes each A_im once.

    It reads what it wrote before, and all else as in `inverse_kernel`.
    """
    column, slot, head = tl.program_id(0) * 2, tl.program_id(1).to(tl.int64), tl.program_id(2)
    start, tokens, _ = chunk_bounds(slot, T, L, bounds, PACKED)
    k += start * KEYS * K + head * KEYS // HEADS * K
    beta += start * HEADS + head
    gates += (slot * HEADS + head) * L
    gates_low += (slot * HEADS + head) * L
    inverses += (slot * HEADS + head) * _blocks(L // C) * C * C
    dtype: tl.constexpr = tl.bfloat16 if k.dtype.element_ty == tl.bfloat16 else tl.float32
    at, channels = tl.arange(0, C), tl.arange(0, K)
    for chunk in range(column + 1, tl.cdiv(tokens, C)):
        here = chunk * C + at
        keys = tl.load(k + here[:, None] * KEYS * K + channels[None, :], (here < tokens)[:, None], 0).to(dtype)
        total, total_of_other = tl.zeros((C, C), tl.float32), tl.zeros((C, C), tl.float32)
        for middle in range(column, chunk):
            there = middle * C + at
            block = tl.load(k + there[:, None] * KEYS * K + channels[None, :]).to(dtype)
            system = _scores(keys, block, gates, gates_low, here, there, P, GATED, EXACT_GATES, PRECISION)
            system *= tl.load(beta + there * HEADS).to(tl.float32)[None, :]
            total = _add_below(total, system, inverses, middle, column, C, PRECISION)
            if middle > column:
                total_of_other = _add_below(total_of_other, system, inverses, middle, column + 1, C, PRECISION)
        _store_below(inverses, chunk, column, total, C, PRECISION)
        if chunk > column + 1:
            _store_below(inverses, chunk, column + 1, total_of_other, C, PRECISION)
        tl.debug_barrier()  # later blocks are made of what other threads have written here


@triton.jit
def wait_for_launch():
    """Wait for the launch before this one, where it may still be running.

    What is read before that must be of the launch before the last one, or of an earlier one: those have ended.
    """
    tl.extra.cuda.gdc_wait()


@triton.jit(do_not_specialize=["T", "index", "KEYS", "HEADS", "BLOCKS"])
def read_kernel(
    k, k_columns, v, gates, gates_low, states, reads, unread, arrived, bounds, sequences, channels, ones, T, L, index,
    outers, rows, KEYS, HEADS, BLOCKS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, BLOCK: tl.constexpr,
    SHARES: tl.constexpr, GATED: tl.constexpr, EXACT_GATES: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """unread `[sequences, Hv, L, V]`, float32: values v `[B T, Hv, V]` but for what the state before them holds.

    From k `[B T, Hk, K]`, the same with tokens last `[slots, Hk, K, L]`, and weighted states `[sequences, Hv, rows,
    V]`. ones are weights of tiles that have theirs already.

    A program takes a block of tokens and a share of the rows, and leaves what it has read in `reads [sequences, Hv,
    SHARES, L, V]`. That of a block's programs which comes last, counted in `arrived [slots, Hv, BLOCKS]`, zeros at
    first, adds them up, always in the same order. Scalars are read a trip ahead, for they are too narrow to be copied
    ahead like tiles (see `from_state`).
    """
    share, block = tl.program_id(0) % SHARES, tl.program_id(0) // SHARES
    head, row = tl.program_id(1), tl.program_id(2)
    slot, start, tokens = find_stretch(row, index, T, L, bounds, sequences, PACKED)
    if block * BLOCK >= tokens:
        return
    here = block * BLOCK + tl.arange(0, BLOCK)
    at = tl.minimum(here, tokens - 1) * KEYS * K
    inners, values = tl.arange(0, INNER), tl.arange(0, V)
    k += start * KEYS * K + head * KEYS // HEADS * K
    k_columns += (slot * KEYS + head * KEYS // HEADS) * K * L
    state = row.to(tl.int64) * HEADS + head
    states += state * rows * V
    tiles = inners[:, None] * V + values[None, :]
    dtype = states.dtype.element_ty
    y, base = tl.zeros((BLOCK, V), tl.float32), 0
    for inner in tl.static_range(K // INNER):
        prefix = outer_count((inner + 1) * INNER, P)
        tile = tl.load(k + at[:, None] + (inner * INNER + inners)[None, :]).to(dtype)
        low, high = prefix * share // SHARES, prefix * (share + 1) // SHARES
        first = outer_scalars(k_columns, here, L, channels, ones, low, outers, P)
        second = outer_scalars(k_columns, here, L, channels, ones, tl.minimum(low + 1, prefix - 1), outers, P)
        third = outer_scalars(k_columns, here, L, channels, ones, tl.minimum(low + 2, prefix - 1), outers, P)
        for outer in range(low, high):
            scaled = as_operand(tile * first[:, None], dtype, PRECISION)
            y = tl.dot(scaled, tl.load(states + (base + outer * INNER) * V + tiles), y, input_precision=PRECISION)
            first, second = pass_on(second, first, outer), pass_on(third, second, outer)
            third = outer_scalars(k_columns, here, L, channels, ones, tl.minimum(outer + 3, prefix - 1), outers, P)
        base += prefix * INNER
    place = slot * HEADS + head
    if GATED:
        y *= decay_from_start(gates, gates_low, place * L + here, here < tokens, EXACT_GATES)[:, None]
    exists, places = (here < tokens)[:, None], here[:, None] * V + values[None, :]
    if SHARES > 1:
        tl.store(reads + (state * SHARES + share) * L * V + places, y, exists)
        tl.debug_barrier()  # what all threads have stored comes before the count
        count = tl.atomic_add(arrived + place * BLOCKS + block, 1, sem="acq_rel")
        if count < SHARES - 1:
            return
        y = tl.load(reads + state * SHARES * L * V + places, exists, 0)
        for other in tl.static_range(1, SHARES):
            y += tl.load(reads + (state * SHARES + other) * L * V + places, exists, 0)
    asked = tl.load(v + ((start + here[:, None]) * HEADS + head) * V + values[None, :], exists, 0).to(tl.float32)
    tl.store(unread + state * L * V + places, asked - y, exists)


@triton.jit
def _add_solved(total, inverse, x, PRECISION: tl.constexpr):
    """`total + inverse x`. Of an inverse in float16 x is as well, brought to its range, which keeps as many digits as
    TensorFloat32 has."""
    if inverse.dtype == tl.float16:
        most = tl.max(tl.abs(x))
        factor = tl.exp2(tl.ceil(tl.log2(tl.where(most > 0, most, 1.0))))
        total += factor * tl.dot(inverse, (x / factor).to(tl.float16))
    else:
        total += solve(inverse, x, PRECISION)
    return total


@triton.jit(do_not_specialize=["T", "index", "HEADS", "BLOCKS"])
def solve_kernel(
    v, beta, inverses, unread, errors, written, bounds, sequences, T, L, index, HEADS, BLOCKS,
    C: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr, MEETS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    PACKED: tl.constexpr, OVERLAPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one stretch errors, float32, and what is written, in the products' dtype, both `[B T, Hv, V]`.

    A program takes VALUES values of a block of tokens, MEETS tokens at a time, those with most of them first.
    """
    chunk, head, row = BLOCKS - 1 - tl.program_id(0) % BLOCKS, tl.program_id(1), tl.program_id(2)
    column = tl.program_id(0) // BLOCKS * VALUES
    slot, start, tokens = find_stretch(row, index, T, L, bounds, sequences, PACKED)
    if OVERLAPS:
        wait_for_launch()
    if chunk * C >= tokens:
        return
    first = (start * HEADS + head) * V + column
    inverses += (slot * HEADS + head) * _blocks(L // C) * C * C
    unread += (row.to(tl.int64) * HEADS + head) * L * V + column
    here, earlier, values = chunk * C + tl.arange(0, C), tl.arange(0, MEETS), tl.arange(0, VALUES)
    width, end = (chunk + 1) * C, tl.minimum((chunk + 1) * C, tokens)
    inverses += _blocks(chunk) * C * C + tl.arange(0, C)[:, None] * width
    found = tl.zeros((C, VALUES), tl.float32)
    if HAS_INITIAL or index > 0:
        for block in range(0, end, MEETS):
            there = block + earlier
            x = tl.load(unread + there[:, None] * V + values[None, :], (there < end)[:, None], 0)
            inverse = tl.load(inverses + there[None, :], (there < width)[None, :], 0)
            found = _add_solved(found, inverse, x, PRECISION)
    else:
        for block in range(0, end, MEETS):
            there = block + earlier
            x = tl.load(v + first + there[:, None] * HEADS * V + values[None, :], (there < end)[:, None], 0)
            inverse = tl.load(inverses + there[None, :], (there < width)[None, :], 0)
            found = _add_solved(found, inverse, x.to(tl.float32), PRECISION)
    exists = here < tokens
    places = first + here[:, None] * HEADS * V + values[None, :]
    rates = tl.load(beta + (start + here) * HEADS + head, exists, 0).to(tl.float32)
    tl.store(errors + places, found, exists[:, None])
    tl.store(written + places, as_operand(found * rates[:, None], written.dtype.element_ty, PRECISION), exists[:, None])


@triton.jit(do_not_specialize=["T", "index", "KEYS", "HEADS"])
def write_kernel(
    k_columns, decayed, gates, gates_low, written, carried, states, bounds, sequences, channels, weights, T, L,
    index, outers, rows, KEYS, HEADS,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr, INNER: tl.constexpr, BLOCK: tl.constexpr,
    HAS_INITIAL: tl.constexpr, GATED: tl.constexpr, EXACT_GATES: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry on states `[sequences, Hv, rows, V]`, in float32 and, weighted, in the products' dtype.

    From keys with tokens last `[slots, Hk, K, L]`, the same times what is left of them at the stretch's end `[slots,
    Hv, K, L]`, and what was written. A program takes two tiles of a sequence and head.
    """
    program, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot, start, tokens = find_stretch(row, index, T, L, bounds, sequences, PACKED)
    if PACKED:  # nobody reads the state after the last stretch
        tokens = tl.where(slot + 1 < tl.load(sequences + row * 2 + 1), tokens, 0)
    if tokens == 0:
        return
    # Which inner block the program is of, and its first outer monomial.
    inner, outer, base, end = 0, program * 2, 0, outer_count(INNER, P)
    for block in tl.static_range(K // INNER - 1):
        prefix = outer_count((block + 1) * INNER, P)
        if (inner == block) & (outer >= prefix):
            inner, outer, base = block + 1, outer - tl.cdiv(prefix, 2) * 2, base + prefix * INNER
            end = outer_count((block + 2) * INNER, P)
    place = slot * HEADS + head
    k_columns += (slot * KEYS + head * KEYS // HEADS) * K * L
    decayed += place * K * L
    written += (start * HEADS + head) * V
    inners, values, offsets = tl.arange(0, INNER), tl.arange(0, V), tl.arange(0, BLOCK)
    left = 1.0
    if GATED:
        left = decay_from_start(gates, gates_low, place * L + L - 1, tokens > 0, EXACT_GATES)
    tiles = (row.to(tl.int64) * HEADS + head) * rows * V + base * V + inners[:, None] * V + values[None, :]
    columns = (k_columns, decayed, offsets, L, channels, outers)
    totals, scalars = (), ()
    for number in tl.static_range(2):
        monomial = tl.minimum(outer + number, end - 1)
        before = (inners[:, None] >= 0) & (HAS_INITIAL or index > 0)
        totals += (left * tl.load(carried + tiles + monomial * INNER * V, before, 0),)
        scalars += (outer_with_decay(columns, monomial, P),)  # read a trip ahead, as in `read_kernel`
    for token in range(0, tokens, BLOCK):
        at = token + offsets
        tile = tl.load(k_columns + (inner * INNER + inners)[:, None] * L + at[None, :])
        # Beyond the last token decayed columns are zero.
        u = tl.load(written + tl.minimum(at, tokens - 1)[:, None] * HEADS * V + values[None, :]).to(tile.dtype)
        columns = (k_columns, decayed, tl.minimum(at + BLOCK, L - 1), L, channels, outers)
        sums, following = (), ()
        for number in tl.static_range(2):
            scaled = as_operand(tile * scalars[number][None, :], tile.dtype, PRECISION)
            sums += (tl.dot(scaled, u, totals[number], input_precision=PRECISION),)
            following += (outer_with_decay(columns, tl.minimum(outer + number, end - 1), P),)
        totals, scalars = sums, following
    for number in tl.static_range(2):
        monomial = tl.minimum(outer + number, end - 1)
        exists = (inners[:, None] >= 0) & (outer + number < end)
        there = tiles + monomial * INNER * V
        weight = 1.0
        if P == 2:
            weight = tl.where(monomial // INNER == inner, 1.0, 2.0)
        if P > 2:
            weight = tl.load(weights + inner * outers + monomial)
        tl.store(carried + there, totals[number], exists)
        tl.store(states + there, as_operand(totals[number] * weight, states.dtype.element_ty, PRECISION), exists)
