"""The delta rule in chunks: linear cost, plain PyTorch, forward and backward.

A token writes `m(k_t) u_t^T` into the state, where `u_t = beta_t e_t` and `e_t = v_t - (what the state holds for k_t)`
is its error (`u_t = v_t` where there is no beta). Inside a chunk of C tokens that starts from the state S, keys and
queries read alike, from the state and from earlier tokens:

    reads_x = exp(G) query(x, S) + sum_j exp(G - G_j) (x . k_j)^p u_j           for x = k (j < t) and x = q (j <= t)
    e = v - reads_k,  u = beta e,  o = reads_q
    S <- exp(G_C) S + update(k exp(G_C - G), u)

The second line is a unit triangular system for the errors of a chunk (the UT transform without its matrix, since here S
is known when a chunk begins). `query` and `update` are those of power attention, in the tiled layout of its `tiles.py`.

Seen from the errors, the rest is linear attention with two readers and values u. Its backward pass has the output
gradients `-beta z` for the keys' reads and `do` for the queries', where `z` solves the transposed system from the
gradient of u; then `dv = beta z` and `dbeta = z . e`. The forward pass saves the errors, the backward pass computes
states again, from a few that it keeps on the way, so memory is linear in T with a small constant.

Shapes: tokens come last, and batch and heads are one dimension `n`: keys `[n, K, C]`, readers `[n, K, R C]` (keys, then
queries), values `[n, V, C]`, states `[n, V, rows]`. Loops run over chunks and over blocks of the batch that fit in
cache, which is why this stands inside an opaque op.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.delta.call import Gradients, Incoming, Inputs, Options, Outputs, Saved
from zoo.kernels.delta.decay import FORGETS, ChannelDecay, HeadDecay
from zoo.kernels.power.call import or_empty
from zoo.kernels.power.expansion import coefficients, state_size
from zoo.kernels.power.heads import gather_heads, spread_heads
from zoo.kernels.power.tiles import Workspace, add_gradient, add_query, add_update, tiles

__all__ = ["backward", "forward", "resolve_chunk_size"]

# Elements of a batch block's scores: 1 MiB in float32, so that passes over them stay in cache.
_BLOCK_ELEMENTS = 2**18
# Elements of the states that the backward pass may keep at once: 32 MiB in float32.
_STATE_ELEMENTS = 2**23

_At = tuple[slice, slice]  # rows of the batch, tokens


def resolve_chunk_size(chunk_size: int, T: int, K: int, p: int) -> int:
    """The chunk length C to use; 0 chooses. Work inside a chunk grows with C, and C tokens share that on the state."""
    if chunk_size:
        return chunk_size
    return min(512, 1 << max(6, state_size(K, p).bit_length() - 2))  # between a quarter and a half of D, from 64 on


class _Scan:
    """One call's inputs and sizes, with the views of them that a block of the batch and a chunk of tokens needs."""

    def __init__(self, inputs: Inputs, options: Options) -> None:
        self.inputs, self.dtype = inputs, inputs.accumulation
        self.p, self.scale = options.p, options.scale
        self.B, self.T, self.H, self.V = inputs.v.shape
        self.K = inputs.k.shape[-1]
        C = self.chunk_size = resolve_chunk_size(options.chunk_size, self.T, self.K, self.p)
        self.chunks = [slice(start, min(start + C, self.T)) for start in range(0, self.T, C)]
        self.layout = tiles(self.K, self.p, self.dtype, inputs.q.device)
        self.workspace = Workspace(self.dtype, inputs.q.device)

    def blocks(self) -> list[slice]:
        """Blocks of the batch."""
        C = min(self.chunk_size, self.T)
        size = max(1, _BLOCK_ELEMENTS // max(1, 2 * self.H * C * C))
        return [slice(start, min(start + size, self.B)) for start in range(0, self.B, size)]

    def fold(self, x: Tensor) -> Tensor:
        """A chunk `[b, C, heads, X]` as contiguous `[n, X, C]` in the accumulation dtype; shared heads are repeated."""
        x = spread_heads(x, self.H, 2).permute(0, 2, 3, 1).to(self.dtype)
        return x.reshape(-1, *x.shape[2:]).contiguous()

    def unfold(self, x: Tensor, heads: int) -> Tensor:
        """The inverse of `fold`: `[n, X, C]` to `[b, C, heads, X]`; what shared heads have is summed."""
        return gather_heads(x.unflatten(0, (-1, self.H)).permute(0, 3, 1, 2), heads, 2)

    def keys(self, at: _At) -> Tensor:
        return self.fold(self.inputs.k[at])

    def readers(self, at: _At, keys: Tensor) -> Tensor:
        """What reads: keys, if they are corrected by what they read, and queries."""
        queries = self.fold(self.inputs.q[at]) * self.scale
        return queries if self.inputs.beta is None else torch.cat((keys, queries), 2)

    def rates(self, at: _At) -> Tensor | None:
        return None if self.inputs.beta is None else self.fold(self.inputs.beta[at][..., None])  # [n, 1, C]

    def log_gates(self, at: _At) -> Tensor | None:
        """`[n, 1, C]` or `[n, K, C]`."""
        log_g = self.inputs.log_g
        return None if log_g is None else self.fold(log_g[at] if self.inputs.gates_channels else log_g[at][..., None])

    def decay(self, at: _At) -> HeadDecay | ChannelDecay:
        log_g = self.log_gates(at)
        if log_g is None:
            log_g = torch.zeros(1, 1, at[1].stop - at[1].start, device=self.inputs.q.device)
        return ChannelDecay(log_g, self.dtype) if self.inputs.gates_channels else HeadDecay(log_g, self.p, self.dtype)

    def written(self, at: _At, errors: Tensor) -> Tensor:
        """What a chunk wrote `[n, V, C]`, from the errors of all tokens if there is a beta."""
        rates = self.rates(at)
        return self.fold(self.inputs.v[at]) if rates is None else self.fold(errors[at]) * rates

    def query(self, x: Tensor, state: Tensor) -> Tensor:
        """What a state holds for vectors `x [n, K, C]`: `[n, V, C]`."""
        found = x.new_zeros(x.shape[0], self.V, x.shape[2])
        add_query(found, x, state, self.layout, self.workspace)
        return found

    def gradient(self, x: Tensor, values: Tensor, state: Tensor) -> Tensor:
        """The gradient of `values . query(x, state)` for x `[n, K, C]`."""
        dx = torch.zeros_like(x)
        add_gradient(dx, x, values, state, self.layout, self.workspace)
        return dx

    def update(self, state: Tensor, whole: Tensor, x: Tensor, values: Tensor) -> Tensor:
        """Decay a state `[n, V, rows]` and add `values m(x)^T`, in place."""
        add_update(state.mul_(whole), x, values, self.layout, self.workspace)
        return state

    def pack(self, S: Tensor | None) -> Tensor:
        """The tiled form `[B, H, V, rows]` of a state, a copy; zeros for an absent one."""
        if S is None:
            shape = (self.B, self.H, self.V, self.layout.rows)
            return torch.zeros(shape, dtype=self.dtype, device=self.inputs.q.device)
        return S.to(self.dtype).index_select(2, self.layout.packed).mT.contiguous()

    def unpack(self, state: Tensor) -> Tensor:
        """The inverse of `pack`: `[B, H, D, V]`."""
        return state.mT.index_select(2, self.layout.unpacked).contiguous()

    @property
    def multiplicities(self) -> Tensor:
        """Multinomial coefficients of the tiled rows, not shared among copies `[rows]`."""
        return coefficients(self.K, self.p, self.dtype, self.inputs.q.device)[self.layout.packed]


def _spread(x: Tensor, factor: Tensor) -> Tensor:
    """Vectors `[n, K, R C]` times a factor for each token `[n, 1 or K, C]`."""
    return (x.unflatten(2, (-1, factor.shape[2])) * factor[:, :, None]).flatten(2)


def forward(inputs: Inputs, options: Options) -> Outputs:
    """Output, last state and errors, the latter two where they are asked for."""
    scan = _Scan(inputs, options)
    o = torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
    saves_errors = options.save_errors and inputs.beta is not None
    errors = torch.empty_like(o, dtype=scan.dtype) if saves_errors else or_empty(None, o)
    keeps_state = options.return_state or inputs.S is not None or len(scan.chunks) > 1
    states = scan.pack(inputs.S) if keeps_state else None
    for rows in scan.blocks():
        state = None if states is None else states[rows].flatten(0, 1)
        for index, tokens in enumerate(scan.chunks):
            at, C = (rows, tokens), tokens.stop - tokens.start
            keys, written, rates, decay = scan.keys(at), scan.fold(inputs.v[at]), scan.rates(at), scan.decay(at)
            readers = scan.readers(at, keys)
            scores = decay.scores(readers, keys)
            if state is None or (index == 0 and inputs.S is None):
                reads = written.new_zeros(*written.shape[:2], readers.shape[2])
            else:
                reads = scan.query(_spread(readers, decay.from_start), state)
            if rates is not None:
                found = _solve(scores[:, :, 0] * rates.mT, written - reads[..., :C])
                if saves_errors:
                    errors[at] = scan.unfold(found, scan.H)
                written = found * rates
            o[at] = scan.unfold(reads[..., -C:].baddbmm(written, scores[:, :, -1]), scan.H)
            if state is not None and (options.return_state or index + 1 < len(scan.chunks)):
                scan.update(state, decay.whole, keys * decay.to_end, written)
    S = scan.unpack(states) if options.return_state and states is not None else None
    return Outputs(o, or_empty(S, o), errors, or_empty(None, o))


def _solve(system: Tensor, values: Tensor) -> Tensor:
    """`x (1 + system) = values`, where only what lies above the diagonal of `system [n, C, C]` counts."""
    return torch.linalg.solve_triangular(system, values, upper=True, left=False, unitriangular=True)


def backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Gradients of the inputs."""
    scan, dS, errors = _Scan(inputs, options), incoming.dS, saved.errors
    differentiated = _Backward(scan, incoming.do, errors)
    needs_states = inputs.S is not None or dS is not None or len(scan.chunks) > 1
    # Divided by the coefficients, which makes it a symmetric tensor as the state is.
    dstates = scan.pack(dS).div_(scan.multiplicities) if needs_states else None
    states = scan.pack(inputs.S) if needs_states else None
    for rows in scan.blocks():
        dstate = None if dS is None or dstates is None else dstates[rows].flatten(0, 1).clone()
        for index, before, after in _history(scan, rows, errors, states, to_the_end=dS is not None):
            to_the_start = index > 0 or inputs.S is not None
            before = before if to_the_start else None
            dstate = differentiated.chunk((rows, scan.chunks[index]), before, after, dstate, to_the_start=to_the_start)
        if dstates is not None and dstate is not None:
            dstates[rows] = dstate.unflatten(0, (-1, scan.H))
    if inputs.S is None or dstates is None:
        return differentiated.gradients
    return differentiated.gradients._replace(S=scan.unpack(dstates.mul_(scan.multiplicities)))


def _history(
    scan: _Scan, rows: slice, errors: Tensor, states: Tensor | None, *, to_the_end: bool
) -> Iterator[tuple[int, Tensor | None, Tensor | None]]:
    """Each chunk's number, and the states before and after it, from the last chunk to the first.

    States are computed again from those at the starts of segments of chunks. There is none after the last chunk unless
    `to_the_end`, and none at all without `states`.
    """
    N = len(scan.chunks)
    if states is None:
        yield from ((index, None, None) for index in reversed(range(N)))
        return
    state = states[rows].flatten(0, 1)
    length = max(math.isqrt(N), _STATE_ELEMENTS // max(1, state.numel()))
    starts, kept = range(0, N, length), []

    def write(index: int, state: Tensor) -> Tensor:
        at = (rows, scan.chunks[index])
        decay = scan.decay(at)
        return scan.update(state, decay.whole, scan.keys(at) * decay.to_end, scan.written(at, errors))

    for start in starts:
        kept.append(state.clone())
        if start < starts[-1]:
            for index in range(start, start + length):
                write(index, state)
    for start in reversed(starts):
        segment = [kept.pop()]
        stop = min(start + length, N)
        for index in range(start, stop if to_the_end else min(stop, N - 1)):
            segment.append(write(index, segment[-1].clone()))
        for index in reversed(range(start, stop)):
            after = segment.pop() if index - start + 1 < len(segment) else None
            yield index, segment[-1], after


class _Backward:
    """The backward scan, and the gradients that it fills."""

    def __init__(self, scan: _Scan, do: Tensor, errors: Tensor) -> None:
        self.scan, self.do, self.errors = scan, do, errors
        inputs = scan.inputs
        by_token = (
            or_empty(None, do) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
            for x in (inputs.q, inputs.k, inputs.v, inputs.log_g, inputs.beta)
        )
        self.gradients = Gradients._make((*by_token, or_empty(None, do)))

    def chunk(
        self, at: _At, before: Tensor | None, after: Tensor | None, dafter: Tensor | None, *, to_the_start: bool
    ) -> Tensor | None:
        """Fill in the gradients of a chunk's tokens.

        Returns the gradient of the state before it where that is asked for, from that of the state after it, which it
        overwrites; either is None where it is zero.
        """
        scan, rates = self.scan, self.scan.rates(at)
        keys, decay, do = scan.keys(at), scan.decay(at), scan.fold(self.do[at])
        readers, written = scan.readers(at, keys), scan.written(at, self.errors)
        scores = decay.scores(readers, keys)
        read, kept = _spread(readers, decay.from_start), keys * decay.to_end  # what meets the states

        dwritten = do @ scores[:, :, -1].mT
        if dafter is not None:
            dwritten += scan.query(kept, dafter)
        dvalues, dreads = dwritten, do
        if rates is not None:
            z = _solve_transposed(scores[:, :, 0] * rates, dwritten)
            dvalues = z * rates
            dreads = torch.cat((-dvalues, do), 2)
            self.store("beta", at, (z * scan.fold(self.errors[at])).sum(1, keepdim=True))
        self.store("v", at, dvalues)
        dscores = (written.mT @ dreads).unflatten(2, scores.shape[2:])
        if rates is not None:
            dscores[:, :, 0].diagonal(0, 1, 2).zero_()  # a token corrects what it finds before it writes
        dreaders, dkeys = decay.gradients(dscores, readers, keys)
        if before is not None:
            dreaders += _spread(scan.gradient(read, dreads, before), decay.from_start)
        if dafter is not None:
            dkeys += scan.gradient(kept, written, dafter) * decay.to_end

        C = keys.shape[2]
        self.store("q", at, dreaders[..., -C:] * scan.scale)
        self.store("k", at, dkeys if rates is None else dkeys + dreaders[..., :C])
        if scan.inputs.log_g is not None:
            # A reader's decay grows with the sum of gates at its token, and what is kept of a key shrinks.
            dtotal = (readers * dreaders).unflatten(2, (-1, C)).sum(2).sub_(keys * dkeys)
            self.store_gates(at, dtotal, None if after is None or dafter is None else after * dafter)
        if not to_the_start:
            return None
        dafter = do.new_zeros(do.shape[0], scan.V, scan.layout.rows) if dafter is None else dafter
        return scan.update(dafter, decay.whole, read, dreads)

    def store_gates(self, at: _At, dtotal: Tensor, along: Tensor | None) -> None:
        """The gradient of a chunk's gates, from that of their sums.

        `dtotal [n, K, C]` is what vectors give to it, and `along [n, V, rows]`, or zero, the state after the chunk
        times its gradient: that state decays by all of the chunk's gates.
        """
        scan, log_g = self.scan, self.scan.log_gates(at)
        assert log_g is not None
        dtotal = dtotal if scan.inputs.gates_channels else dtotal.sum(1, keepdim=True).div_(scan.p)
        if along is not None:
            along = (along * scan.layout.coefficients).sum(1)  # [n, rows]
            dtotal[..., -1] += along if scan.inputs.gates_channels else along.sum(1, keepdim=True)
        self.store("log_g", at, _sum_later(dtotal, log_g))

    def store(self, name: str, at: _At, gradient: Tensor) -> None:
        """The gradient `[n, X, C]` of a chunk of the input of that name."""
        whole = getattr(self.gradients, name)
        part = self.scan.unfold(gradient, whole.shape[2])
        whole[at] = part if whole.dim() == 4 else part[..., 0]


def _solve_transposed(system: Tensor, values: Tensor) -> Tensor:
    """`x (1 + system^T) = values`, where only what lies above the diagonal of `system [n, C, C]` counts."""
    return torch.linalg.solve_triangular(system.mT, values, upper=False, left=False, unitriangular=True)


def _sum_later(dtotal: Tensor, log_g: Tensor) -> Tensor:
    """Gradient of a chunk's gates `[n, 1 or K, C]`: the sum over later tokens, restarted at every boundary."""
    C = log_g.shape[2]
    later = F.pad(dtotal.double().flip(2).cumsum(2).flip(2), (0, 1))  # zero past the end
    forgets = log_g <= FORGETS
    if not forgets.any():
        return later[..., :C]
    # Where the segment of each token ends: the next boundary strictly after it, or C.
    starts = torch.where(forgets, torch.arange(C, device=log_g.device), C)
    ends = F.pad(starts[..., 1:], (0, 1), value=C).flip(2).cummin(2).values.flip(2)
    return torch.where(forgets, 0, later[..., :C] - later.gather(2, ends))
