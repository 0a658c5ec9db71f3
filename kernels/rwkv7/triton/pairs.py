"""What tokens of a chunk read of one another, `sum_c x_ic y_jc exp(G_ic - G_jc)`, and its gradients.

Readers are kappa, which reads what was before its token and its decay, and r; writers are b and k. The decay of a pair
is the product of two, from the writer to a cut and from the cut to the reader. Where decays are known to be bounded a
chunk has one cut, in the middle of its BASE tokens, on whichever side of it the two are: one of the factors may be over
1, and is a number of a few digits. Where nothing is known, BASE is 1, and a chunk is halved, its halves are halved, and
so on: every pair is parted by exactly one cut, and both factors are at most 1 (see the delta rule's `scores.py`).

In all of it gates point to some channels of the sums of log decays of the chunk's first token, with their stride and
the number of tokens. BASE is `2^FIRST`.
"""

import triton
import triton.language as tl

from zoo.kernels.power.triton.operands import as_operand

__all__ = ["add_pair_gradients", "add_pair_scores"]


@triton.jit
def _since_cut(at, cut, gates, BLOCK: tl.constexpr):
    """Logs of decays from the cut to each token's r, and to its kappa `[C, BLOCK]`: negative to what is before it.

    Sums are loaded each time, which spares their registers.
    """
    base, stride, tokens = gates
    cut = tl.minimum(cut, tokens - 1)
    places = base + at[:, None] * stride + tl.arange(0, BLOCK)[None, :]
    here = (at < tokens)[:, None]
    at_cut = tl.load(base + cut[:, None] * stride + tl.arange(0, BLOCK)[None, :])
    after = tl.load(places, here, 0)
    before = tl.load(places - stride, here & (at > 0)[:, None], 0)
    return (after - at_cut).to(tl.float32), (before - at_cut).to(tl.float32)


@triton.jit
def _base(at, gates, BLOCK: tl.constexpr, BASE: tl.constexpr):
    """Factors of kappa, r and writers in blocks of BASE tokens, and which pairs are in one."""
    after, before = _since_cut(at, at // BASE * BASE + BASE // 2, gates, BLOCK)
    # What tokens that are not there would read, and kappa of one token alone, is nothing, but for inf.
    after, before = tl.clamp(after, -64.0, 64.0), tl.clamp(before, -64.0, 64.0)
    return tl.exp2(before), tl.exp2(after), tl.exp2(-after), (at // BASE)[:, None] == (at // BASE)[None, :]


@triton.jit
def _level(at, gates, s, BLOCK: tl.constexpr):
    """Factors of kappa, and of r and writers, at cuts between halves of s tokens; which read; and pairs of one cut."""
    after, before = _since_cut(at, at // (2 * s) * (2 * s) + s - 1, gates, BLOCK)
    together = (at // (2 * s))[:, None] == (at // (2 * s))[None, :]
    return tl.exp2(-tl.abs(before)), tl.exp2(-tl.abs(after)), (at % (2 * s) >= s)[:, None], together


@triton.jit
def _met(found, operands, where, PRECISION: tl.constexpr):
    kb, kk, rb, rk = found
    left, right, removed, added = operands
    kb += tl.where(where, tl.dot(left, removed, input_precision=PRECISION), 0.0)
    kk += tl.where(where, tl.dot(left, added, input_precision=PRECISION), 0.0)
    rb += tl.where(where, tl.dot(right, removed, input_precision=PRECISION), 0.0)
    rk += tl.where(where, tl.dot(right, added, input_precision=PRECISION), 0.0)
    return kb, kk, rb, rk


@triton.jit
def add_pair_scores(found, tokens, gates, FIRST: tl.constexpr, LEVELS: tl.constexpr, DTYPE: tl.constexpr,
                    PRECISION: tl.constexpr):  # fmt: skip
    """Add to scores of kappa with b and with k, and of r with b and with k, `[C, C]`, what these channels give to them.

    tokens are kappa, r, b and k `[C, BLOCK]`. Of writers that a reader does not see it is any number among BASE tokens,
    and nothing elsewhere.
    """
    kappa, r, b, k = tokens
    BLOCK: tl.constexpr = r.shape[1]
    at = tl.arange(0, r.shape[0])
    of_kappa, of_r, of_writers, same = _base(at, gates, BLOCK, 1 << FIRST)
    operands = (
        as_operand(kappa * of_kappa, DTYPE, PRECISION), as_operand(r * of_r, DTYPE, PRECISION),
        tl.trans(as_operand(b * of_writers, DTYPE, PRECISION)), tl.trans(as_operand(k * of_writers, DTYPE, PRECISION)),
    )  # fmt: skip
    found = _met(found, operands, same, PRECISION)
    for level in range(FIRST, LEVELS):  # not unrolled, for levels side by side spill registers
        of_kappa, factor, reads, together = _level(at, gates, 1 << level, BLOCK)
        operands = (
            as_operand(tl.where(reads, kappa * of_kappa, 0.0), DTYPE, PRECISION),
            as_operand(tl.where(reads, r * factor, 0.0), DTYPE, PRECISION),
            tl.trans(as_operand(tl.where(reads, 0.0, b * factor), DTYPE, PRECISION)),
            tl.trans(as_operand(tl.where(reads, 0.0, k * factor), DTYPE, PRECISION)),
        )  # fmt: skip
        found = _met(found, operands, together, PRECISION)
    return found


@triton.jit
def _add(found, scores, where, operands, factors, PRECISION: tl.constexpr):
    """Gradients of one cut's products: of readers and writers, and of the sums of decays at both."""
    dkappa, dr, db, dk, dbefore, dsums = found
    left, right, removed, added = operands
    of_kappa, of_r, of_writers = factors
    scores, SQUARE = scores
    kb, kk = tl.load(scores, where, 0), tl.load(scores + SQUARE, where, 0)
    met = tl.dot(kk, added, tl.dot(kb, removed, input_precision=PRECISION), input_precision=PRECISION)
    dkappa += met * of_kappa
    dbefore += left * met
    rb, rk = tl.load(scores + 2 * SQUARE, where, 0), tl.load(scores + 3 * SQUARE, where, 0)
    met = tl.dot(rk, added, tl.dot(rb, removed, input_precision=PRECISION), input_precision=PRECISION)
    dr += met * of_r
    dsums += right * met
    met = tl.dot(tl.trans(rb), right, tl.dot(tl.trans(kb), left, input_precision=PRECISION), input_precision=PRECISION)
    db += met * of_writers
    dsums -= removed * met
    met = tl.dot(tl.trans(rk), right, tl.dot(tl.trans(kk), left, input_precision=PRECISION), input_precision=PRECISION)
    dk += met * of_writers
    dsums -= added * met
    return dkappa, dr, db, dk, dbefore, dsums


@triton.jit
def add_pair_gradients(found, scores, places, gates, FIRST: tl.constexpr, LEVELS: tl.constexpr, DTYPE: tl.constexpr,
                       PRECISION: tl.constexpr):  # fmt: skip
    """Add to gradients of kappa, r, b and k, and of sums of log decays before kappa and at the others, all
    `[C, BLOCK]`, what comes from those of scores, to whose first entry scores point: `[4, C, C]`, in the order of
    `add_pair_scores`, and zero where a writer is not seen.

    places point to kappa, r, a and k, which are loaded each time, since their registers are needed. What readers give
    to a sum and writers take from it meet in the same rounded products, so that they cancel.
    """
    C: tl.constexpr = found[0].shape[0]
    BLOCK: tl.constexpr = found[0].shape[1]
    kappa, r, a, k = places
    at = tl.arange(0, C)
    here = (at < gates[2])[:, None]
    scores = (scores + at[:, None] * C + at[None, :], C * C)
    of_kappa, of_r, of_writers, same = _base(at, gates, BLOCK, 1 << FIRST)
    removal = tl.load(kappa, here, 0)
    b = -removal.to(tl.float32) * tl.load(a, here, 0)
    operands = (
        as_operand(removal * of_kappa, DTYPE, PRECISION), as_operand(tl.load(r, here, 0) * of_r, DTYPE, PRECISION),
        as_operand(b * of_writers, DTYPE, PRECISION), as_operand(tl.load(k, here, 0) * of_writers, DTYPE, PRECISION),
    )  # fmt: skip
    found = _add(found, scores, same, operands, (of_kappa, of_r, of_writers), PRECISION)
    for level in range(FIRST, LEVELS):  # not unrolled, for levels side by side spill registers
        of_kappa, factor, reads, together = _level(at, gates, 1 << level, BLOCK)
        removal = tl.load(kappa, here, 0)
        b = -removal.to(tl.float32) * tl.load(a, here, 0)
        operands = (
            as_operand(tl.where(reads, removal * of_kappa, 0.0), DTYPE, PRECISION),
            as_operand(tl.where(reads, tl.load(r, here, 0) * factor, 0.0), DTYPE, PRECISION),
            as_operand(tl.where(reads, 0.0, b * factor), DTYPE, PRECISION),
            as_operand(tl.where(reads, 0.0, tl.load(k, here, 0) * factor), DTYPE, PRECISION),
        )  # fmt: skip
        parted = together & reads & (at % (2 << level) < (1 << level))[None, :]
        found = _add(found, scores, parted, operands, (of_kappa, factor, factor), PRECISION)
    return found
