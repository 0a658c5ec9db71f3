"""Kernels that walk along time: a program has some channels of a stretch of tokens, and what it sees in registers.

So an input is read once, where a sum of shifted inputs reads it once a shift, and activation and gradients need nothing
that was saved: they are made anew from the inputs on the way.
"""

import triton
import triton.language as tl

__all__ = ["convolution_gradient_kernel", "convolution_kernel"]


@triton.jit
def _place(T, STRETCHES, channels, BLOCK: tl.constexpr, LENGTH: tl.constexpr):
    """Batch row, first token, tokens from there on, channels `[BLOCK]` and whether they exist.

    Programs that run side by side have neighbouring channels of the same tokens.
    """
    blocks = tl.cdiv(channels, BLOCK)
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    stretch = program // blocks
    first = stretch % STRETCHES * LENGTH
    return (stretch // STRETCHES).to(tl.int64), first.to(tl.int64), T - first, channel, channel < channels


@triton.jit
def _taps(weight, channel, exists, W: tl.constexpr):
    """Weights of a token, last, and of those before it, each `[BLOCK]`."""
    taps = ()
    for j in tl.static_range(W):
        taps = taps + (tl.load(weight + channel * W + j, exists, 0.0).to(tl.float32),)
    return taps


@triton.jit
def _kept(rows, is_reset, COUNT: tl.constexpr):
    """The rows, or zeros in their place at a token that is reset."""
    keeps = is_reset == 0
    found = ()
    for j in tl.static_range(COUNT):
        found = found + (tl.where(keeps, rows[j], 0.0),)
    return found


@triton.jit
def _seen_before(inputs, strides, columns, first, W: tl.constexpr, HAS_TAIL: tl.constexpr, HAS_RESETS: tl.constexpr):
    """The W - 1 rows that the first token of a stretch sees, should it not be reset.

    inputs: x and resets from that token on, and the tail; strides: of a token of x and of one of the tail; columns:
    channels `[BLOCK]`, and whether they exist.
    """
    x, tail, resets = inputs
    stride, channels = strides
    channel, exists = columns
    rows = ()
    for number in tl.static_range(W - 1):
        if HAS_RESETS:
            rows = _kept(rows, tl.load(resets - (W - 1 - number), first > 0, 0), number)
        row = tl.load(x - (W - 1 - number) * stride + channel, exists & (first > 0), 0.0).to(tl.float32)
        if HAS_TAIL:
            row += tl.load(tail + number * channels + channel, exists & (first == 0), 0.0).to(tl.float32)
        rows = rows + (row,)
    return rows


@triton.jit
def _sum(total, taps, rows, W: tl.constexpr):
    """A number and the rows, each times its tap."""
    for j in tl.static_range(W):
        total += taps[j] * rows[j]
    return total


@triton.jit(do_not_specialize=["T", "STRETCHES"])
def convolution_kernel(
    x, weight, bias, tail, resets, y, T, channels, row_stride, token_stride, STRETCHES,
    W: tl.constexpr, BLOCK: tl.constexpr, LENGTH: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_TAIL: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    """y `[B, T, C]`, of x at its strides, weight `[C, W]`, bias `[C]`, tail `[B, W - 1, C]` and resets `[B, T]`.

    A program has LENGTH tokens, ROWS of which are on their way at once; ALIGNED, a power of two, divides x's strides.
    """
    batch, first, tokens, channel, exists = _place(T, STRETCHES, channels, BLOCK, LENGTH)
    # So that the compiler sees what divides them, and loads several channels at once.
    row_stride, token_stride = row_stride // ALIGNED * ALIGNED, token_stride // ALIGNED * ALIGNED
    x += batch * row_stride + first * token_stride
    tail += batch * (W - 1) * channels
    resets += batch * T + first
    y += (batch * T + first) * channels
    taps = _taps(weight, channel, exists, W)
    offset = tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        offset += tl.load(bias + channel, exists, 0.0).to(tl.float32)
    inputs, strides, columns = (x, tail, resets), (token_stride, channels), (channel, exists)
    seen = _seen_before(inputs, strides, columns, first, W, HAS_TAIL, HAS_RESETS)
    for start in range(0, tl.minimum(LENGTH, tokens), ROWS):
        rows = ()
        for ahead in tl.static_range(ROWS):
            there = exists & (start + ahead < tokens)
            rows = rows + (tl.load(x + (start + ahead) * token_stride + channel, there, 0.0).to(tl.float32),)
        for ahead in tl.static_range(ROWS):
            number = start + ahead
            if HAS_RESETS:
                seen = _kept(seen, tl.load(resets + number, number < tokens, 0), W - 1)
            seen = seen + (rows[ahead],)
            found = _sum(offset, taps, seen, W)
            found *= tl.sigmoid(found)
            tl.store(y + number * channels + channel, found.to(y.dtype.element_ty), exists & (number < tokens))
            seen = seen[1:]


@triton.jit(do_not_specialize=["T", "STRETCHES"])
def convolution_gradient_kernel(
    dy, x, weight, bias, tail, resets, dx, dtail, parts, T, channels, row_stride, token_stride, STRETCHES,
    W: tl.constexpr, BLOCK: tl.constexpr, LENGTH: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_TAIL: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    """dx `[B, T, C]`, dtail `[B, W - 1, C]`, and parts `[B STRETCHES, W + 1, C]`: what a stretch adds to the gradients
    of the weights and, last, of the bias.

    A token's gradient is whole once the W - 1 tokens after it have been seen, of the next stretch too.
    """
    batch, first, tokens, channel, exists = _place(T, STRETCHES, channels, BLOCK, LENGTH)
    # So that the compiler sees what divides them, and loads several channels at once.
    row_stride, token_stride = row_stride // ALIGNED * ALIGNED, token_stride // ALIGNED * ALIGNED
    part = tl.program_id(0) // tl.cdiv(channels, BLOCK)
    x += batch * row_stride + first * token_stride
    tail += batch * (W - 1) * channels
    dtail += batch * (W - 1) * channels
    resets += batch * T + first
    dy += (batch * T + first) * channels
    dx += (batch * T + first) * channels
    parts += part.to(tl.int64) * (W + 1) * channels
    taps = _taps(weight, channel, exists, W)
    zeros = tl.zeros((BLOCK,), tl.float32)
    offset = zeros
    if HAS_BIAS:
        offset += tl.load(bias + channel, exists, 0.0).to(tl.float32)
    inputs, strides, columns = (x, tail, resets), (token_stride, channels), (channel, exists)
    seen = _seen_before(inputs, strides, columns, first, W, HAS_TAIL, HAS_RESETS)
    # Gradients of the rows that are seen, 1 for each that a token sees, and gradients of taps and of the bias.
    of_seen, sees, of_taps, of_bias, nothing = (), (), (), zeros, ()
    for _ in tl.static_range(W - 1):
        of_seen = of_seen + (zeros,)
        sees = sees + (tl.full((), 1.0, tl.float32),)
    for _ in tl.static_range(W):
        nothing = nothing + (zeros,)
    of_taps = nothing
    own = tl.minimum(LENGTH, tokens)
    for start in range(0, own + W - 1, ROWS):
        rows, incoming = (), ()
        for ahead in tl.static_range(ROWS):
            number = start + ahead
            there = exists & (number < tokens) & (number < own + W - 1)
            rows = rows + (tl.load(x + number * token_stride + channel, there, 0.0).to(tl.float32),)
            incoming = incoming + (tl.load(dy + number * channels + channel, there, 0.0).to(tl.float32),)
        # What few tokens give is added up by itself: sums of sums lose fewer digits.
        of_few, of_few_biases = nothing, zeros
        for ahead in tl.static_range(ROWS):
            number = start + ahead
            if HAS_RESETS:
                is_reset = tl.load(resets + number, number < tokens, 0)
                seen, sees = _kept(seen, is_reset, W - 1), _kept(sees, is_reset, W - 1)
            seen = seen + (rows[ahead],)
            found = _sum(offset, taps, seen, W)
            sigmoid = tl.sigmoid(found)
            gradient = incoming[ahead] * sigmoid * (1.0 + found * (1.0 - sigmoid))
            counted = tl.where(number < own, gradient, 0.0)  # what comes after is the next stretch's to count
            of_few_biases += counted
            sums, gradients = (), ()
            for j in tl.static_range(W):
                sums = sums + (of_few[j] + counted * seen[j],)
                given = gradient * taps[j]
                if j == W - 1:
                    gradients = gradients + (given,)
                elif HAS_RESETS:
                    gradients = gradients + (of_seen[j] + given * sees[j],)
                else:
                    gradients = gradients + (of_seen[j] + given,)
            of_few = sums
            whole = number - (W - 1)
            here = exists & (whole >= 0) & (whole < own)
            tl.store(dx + whole * channels + channel, gradients[0].to(dx.dtype.element_ty), here)
            if HAS_TAIL:
                before = exists & (first == 0) & (whole < 0)
                tl.store(dtail + number * channels + channel, gradients[0].to(dtail.dtype.element_ty), before)
            seen, of_seen = seen[1:], gradients[1:]
            if HAS_RESETS:
                sees = sees[1:] + (tl.full((), 1.0, tl.float32),)
        sums = ()
        for j in tl.static_range(W):
            sums = sums + (of_taps[j] + of_few[j],)
        of_taps, of_bias = sums, of_bias + of_few_biases
    for j in tl.static_range(W):
        tl.store(parts + j * channels + channel, of_taps[j], exists)
    tl.store(parts + W * channels + channel, of_bias, exists)
