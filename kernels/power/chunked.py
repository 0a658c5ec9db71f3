"""Power attention in chunks: linear cost, plain PyTorch, forward and backward.

Within a chunk of C tokens the weights are computed as they are defined; across chunks the state carries the past:

    y_t = sum_{j in chunk, j <= t} w_tj [v_j, 1]  +  exp(L_t) state (c * m(scale q_t))
    state <- exp(L_C) state + sum_j exp(L_C - L_j) [v_j, 1] m(k_j)^T

where `L` sums the gates from the chunk's start. The column of ones makes the normaliser one more value channel, so that
`state [B, Hs, V + 1, rows]` holds S and z side by side, in the tiled layout of `tiles.py`. The backward pass saves no
state: it scans forwards once more for the states that dq needs, then backwards with the state's gradient, so memory is
linear in T with a small constant.

Inside a chunk tokens come last, and batch and state heads are one dimension `n`: queries `[n, K, R C]` (R queries share
a state), keys `[n, K, C]`, values `[n, V + 1, C]`, weights `[n, C, R C]`. Loops run over chunks and over blocks of the
batch that fit in cache, which is why this stands inside an opaque op.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.power.call import Gradients, Incoming, Inputs, Options, Outputs, Saved, or_empty
from zoo.kernels.power.expansion import coefficients, state_size
from zoo.kernels.power.heads import Heads, gather_heads, spread_heads
from zoo.kernels.power.offset import query_channels
from zoo.kernels.power.reference import bounded, steep, vanishes
from zoo.kernels.power.tiles import Tiles, Workspace, add_gradient, add_query, add_update, tiled_rows, tiles
from zoo.kernels.precision import accumulation_dtype

__all__ = ["backward", "chunk_gradient_sums", "chunk_sums", "forward", "resolve_chunk_size", "sums_shape"]

# exp(-800) is zero in float64 too, and sums of it over a chunk stay exact to 1e-10 in float64, so it stands for -inf.
_FORGET = -800.0
# Elements of a batch block's weights: 1 MiB in float32, so that passes over them stay in cache.
_BLOCK_ELEMENTS = 2**18


class _Decay(NamedTuple):
    """Decays of a chunk, from sums of gates since its start: at its tokens `[n, 1, C]`, and at its outputs."""

    high: Tensor  # the sums [n, 1, C], rounded, and
    low: Tensor  # what rounding left: a float32 difference of float32 sums would be wrong on neighbours
    to_end: Tensor  # what is left of each token at the chunk's end [n, 1, C]
    from_start: Tensor  # what is left of the chunk's start at each output [n, 1, R C]

    @property
    def whole(self) -> Tensor:
        """What is left of the chunk's start at its end `[n, 1, 1]`."""
        return self.from_start[..., -1:]


class _Problem:
    """One call's inputs and sizes, with the views of them that a block of the batch and a chunk of tokens needs."""

    def __init__(self, inputs: Inputs, options: Options) -> None:
        self.q, self.k, self.v, self.log_g, *_ = inputs
        self.p, self.scale = options.p, options.scale
        self.offset = None if inputs.offset is None else inputs.offset / options.scale
        T, K = self.k.shape[1], self.k.shape[-1]
        self.chunk_size = resolve_chunk_size(options.chunk_size, T, K, self.p)
        self.channels = K if self.offset is None else K + 1
        self.heads = inputs.heads
        self.dtype = accumulation_dtype(self.q.dtype)
        self.layout: Tiles = tiles(self.channels, self.p, self.dtype, self.q.device)
        self.workspace = Workspace(self.dtype, self.q.device)

    def blocks(self) -> Iterator[slice]:
        """Blocks of the batch."""
        B, T = self.q.shape[:2]
        C = min(self.chunk_size, T)
        size = max(1, _BLOCK_ELEMENTS // max(1, self.heads.output * C * C))
        return (slice(start, min(start + size, B)) for start in range(0, B, size))

    def chunks(self) -> list[slice]:
        T = self.q.shape[1]
        return [slice(start, min(start + self.chunk_size, T)) for start in range(0, T, self.chunk_size)]

    def fold_outputs(self, x: Tensor) -> Tensor:
        """The outputs' side of a chunk `[b, C, Ho, X]` as `[n, X, R C]`, in the accumulation dtype."""
        x = x.unflatten(2, (self.heads.state, -1)).permute(0, 2, 4, 3, 1).to(self.dtype)
        # Contiguous also where a view would do: with tokens apart in memory everything after this is far slower.
        return x.reshape(-1, x.shape[2], x.shape[3] * x.shape[4]).contiguous()

    def unfold_outputs(self, x: Tensor) -> Tensor:
        """The inverse of `fold_outputs`: `[n, X, R C]` to `[b, C, Ho, X]`."""
        x = x.unflatten(2, (self.heads.queries_per_state, -1)).unflatten(0, (-1, self.heads.state))
        return x.permute(0, 4, 1, 3, 2).flatten(2, 3)

    def unfold_states(self, x: Tensor) -> Tensor:
        """The states' side of a chunk, `[n, X, C]` to `[b, C, Hs, X]`."""
        return x.unflatten(0, (-1, self.heads.state)).permute(0, 3, 1, 2)

    def queries(self, block: slice, tokens: slice) -> Tensor:
        """Times the scale, and as one more channel offsets."""
        q = self.q[block, tokens]
        q = q if self.offset is None else query_channels(q.to(self.dtype), self.offset)
        return self.fold_outputs(spread_heads(q, self.heads.output, 2)).mul(self.scale)

    def keys(self, block: slice, tokens: slice) -> Tensor:
        """Beside offsets with one more channel, of ones."""
        keys = spread_heads(self.k[block, tokens], self.heads.state, 2).permute(0, 2, 3, 1).to(self.dtype)
        keys = keys.reshape(-1, *keys.shape[2:]).contiguous()
        return keys if self.offset is None else F.pad(keys, (0, 0, 0, 1), value=1.0)

    def values(self, block: slice, tokens: slice) -> Tensor:
        """Values and, as one more channel, ones."""
        values = spread_heads(self.v[block, tokens], self.heads.state, 2).permute(0, 2, 3, 1).to(self.dtype)
        return F.pad(values.reshape(-1, *values.shape[2:]), (0, 0, 0, 1), value=1.0)

    def decay(self, block: slice, tokens: slice) -> _Decay:
        if self.log_g is None:
            log_g = torch.zeros(1, 1, tokens.stop - tokens.start, dtype=torch.float64, device=self.q.device)
        else:
            log_g = self.log_g[block, tokens].transpose(1, 2).double().clamp(min=_FORGET)
            log_g = spread_heads(log_g, self.heads.state, 1).reshape(-1, 1, log_g.shape[-1])
        total = log_g.cumsum(-1)
        high = total.to(self.dtype)
        from_start = total.exp().to(self.dtype).repeat(1, 1, self.heads.queries_per_state)
        return _Decay(high, (total - high).to(self.dtype), (total[..., -1:] - total).exp().to(self.dtype), from_start)

    def causal_decay(self, decay: _Decay) -> Tensor:
        """Decay from key to query `[n, C, 1, C]`, zero where the key is later."""
        n, _, C = decay.high.shape
        if self.log_g is None:
            return self.workspace("difference", 1, C, C).fill_(1.0).triu_().unsqueeze(2)
        difference = torch.sub(decay.high, decay.high.mT, out=self.workspace("difference", n, C, C))
        return difference.add_(decay.low).sub_(decay.low.mT).exp_().triu_().unsqueeze(2)

    def multiply(self, weights: Tensor, causal_decay: Tensor) -> Tensor:
        """Multiply `[n, C, R C]` by the causal decay, in place."""
        weights.unflatten(2, (self.heads.queries_per_state, -1)).mul_(causal_decay)
        return weights

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Every key's product with every query `[n, C, R C]`."""
        return torch.bmm(keys.mT, queries, out=self.workspace("scores", keys.shape[0], keys.shape[2], queries.shape[2]))

    def join_state(self, S: Tensor | None, z: Tensor | None) -> Tensor:
        """S and z side by side in the tiled layout: a fresh `[B, Hs, V + 1, rows]`, zeros for an absent state."""
        if S is None or z is None:
            shape = (self.q.shape[0], self.heads.state, self.v.shape[-1] + 1, self.layout.rows)
            return torch.zeros(shape, dtype=self.dtype, device=self.q.device)
        packed = torch.cat((S.to(self.dtype), z.to(self.dtype)[..., None]), dim=-1)
        return packed.index_select(2, self.layout.packed).mT.contiguous()

    def split_state(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `join_state`: packed S `[B, Hs, D, V]` and z `[B, Hs, D]`."""
        packed = state.mT.index_select(2, self.layout.unpacked)
        # Cloned, as an op's outputs must not share memory and a slice of one row counts as contiguous where it stands.
        S, z = packed[..., :-1], packed[..., -1]
        return S.clone(memory_format=torch.contiguous_format), z.clone(memory_format=torch.contiguous_format)

    @property
    def multiplicities(self) -> Tensor:
        """Multinomial coefficients of the tiled rows, not shared among copies `[rows]`."""
        return coefficients(self.channels, self.p, self.dtype, self.q.device)[self.layout.packed]

    def update(self, state: Tensor, keys: Tensor, values: Tensor, decay: _Decay) -> None:
        """Fold a chunk's keys and values into the state `[n, V + 1, rows]`, in place."""
        state.mul_(decay.whole)
        add_update(state, keys, values * decay.to_end, self.layout, self.workspace)


def resolve_chunk_size(chunk_size: int, T: int, K: int, p: int) -> int:
    """The chunk length C to use; 0 chooses.

    Work inside a chunk grows with C, and work on the state is shared by its C tokens; up to a few chunks' length the
    state is not worth its while at all, and one chunk takes everything. Measured on two AVX-512 cores.
    """
    if chunk_size:
        return chunk_size
    D = state_size(K, p)
    C = min(1024, 1 << max(7, D.bit_length() - 2))  # between a quarter and a half of D, from 128 on
    alone = 128 if C == 128 else min(1024, 2 * C)
    return alone if alone >= T else C


def forward(inputs: Inputs, options: Options, sums: Tensor | None = None) -> Outputs:
    """All outputs, o not rounded; nothing is saved for the backward pass. Sequences are not packed.

    sums: `chunk_sums` of these inputs, where they are there already.
    """
    q, _, v, _, S, z, _, _ = inputs
    problem = _Problem(inputs, options)
    B, T, V = q.shape[0], q.shape[1], v.shape[-1]
    o = v.new_empty(B, T, problem.heads.output, V, dtype=problem.dtype)
    denominator = q.new_empty(B, T, problem.heads.output, dtype=problem.dtype) if options.normalize else None
    chunks = problem.chunks()
    keeps_state = options.return_state or S is not None or len(chunks) > 1
    states = problem.join_state(S, z) if keeps_state else None

    for block in problem.blocks():
        state = None if states is None else states[block].flatten(0, 1)
        for index, tokens in enumerate(chunks):
            queries, keys, values = (read(block, tokens) for read in (problem.queries, problem.keys, problem.values))
            decay = problem.decay(block, tokens)
            weights = problem.multiply(problem.scores(queries, keys).pow_(problem.p), problem.causal_decay(decay))
            y = queries.new_zeros(values.shape[0], V + 1, queries.shape[2])
            if state is not None and (index > 0 or S is not None):
                add_query(y, queries, state, problem.layout, problem.workspace)
                y *= decay.from_start
            y = problem.unfold_outputs(y.baddbmm_(values, weights))
            if denominator is not None:
                denominator[block, tokens] = total = y[..., V]
                o[block, tokens] = y[..., :V] * torch.where(vanishes(total), 0, total.reciprocal())[..., None]
            else:
                o[block, tokens] = y[..., :V]
            if state is not None and (options.return_state or index + 1 < len(chunks)):
                if sums is None:
                    problem.update(state, keys, values, decay)
                else:
                    state.mul_(decay.whole).add_(sums[index, block].flatten(0, 1))
    S_out, z_out = (None, None) if states is None or not options.return_state else problem.split_state(states)
    return Outputs(o, *(or_empty(x, q) for x in (denominator, S_out, z_out, None, None, None)))


def backward(
    incoming: Incoming, inputs: Inputs, saved: Saved, options: Options, sums: Tensor | None = None
) -> Gradients:
    """Gradients of all inputs. Sequences are not packed.

    With `sums`, which are `chunk_gradient_sums` of these inputs, all but those of the incoming state.

    The gates' gradient uses that weights are homogeneous of degree p in q and in k: the gradient of the summed gates is
    `(q . dq - k . dk) / p`. A gate gets its sum over later tokens, in which a pair of two later ones cancels: pairs in
    one chunk are therefore summed pair by pair (`_Backward.add_pairs`).
    The state's gradient is carried divided by the coefficients, which makes it a symmetric tensor as the state is.
    """
    (_, dS, dz), (q, k, v, log_g, S, z, offset, _) = incoming, inputs
    problem = _Problem(inputs, options)
    has_state_gradient = dS is not None and dz is not None
    states = dstates = None
    if S is not None or has_state_gradient or len(problem.chunks()) > 1:
        states, dstates = problem.join_state(S, z), problem.join_state(dS, dz)
        if has_state_gradient:
            dstates /= problem.multiplicities
    scan = _Backward(problem, incoming.do, saved, normalize=options.normalize)
    for block in problem.blocks():
        state = None if states is None else states[block].flatten(0, 1)
        scan.forwards(block, state, carries=S is not None, to_the_end=has_state_gradient)
        if state is None or dstates is None:
            continue
        dstate = dstates[block].flatten(0, 1)
        if q.shape[1] > 0 and has_state_gradient and log_g is not None:
            along = (state * dstate * problem.layout.coefficients).sum((-2, -1), dtype=torch.float64)
            scan.dtotal[block, -1] += along.view(-1, problem.heads.state)
        to_the_start = S is not None and sums is None
        scan.backwards(block, dstate, sums, carries=has_state_gradient, to_the_start=to_the_start)
    dlog_g = None if log_g is None else _gate_gradient(scan.dtotal, log_g, problem.heads)
    dS_in, dz_in = None, None
    if S is not None and dstates is not None and sums is None:
        dS_in, dz_in = problem.split_state(dstates.mul_(problem.multiplicities))
    doffset = None if offset is None else gather_heads(scan.doffset, problem.heads.query, 0).to(offset.dtype)
    rest = (or_empty(x, q) for x in (dlog_g, dS_in, dz_in, doffset))
    return Gradients(scan.dq, scan.dk.to(k.dtype), scan.dv.to(v.dtype), *rest)


def sums_shape(inputs: Inputs, options: Options) -> tuple[int, int, int, int, int]:
    """Of what chunks add to a state, `[N, B, Hs, V + 1, rows]`."""
    (B, T, _, K), V, heads = inputs.q.shape, inputs.v.shape[-1], inputs.heads
    C = resolve_chunk_size(options.chunk_size, T, K, options.p)
    channels = K if inputs.offset is None else K + 1
    return -(-T // C), B, heads.state, V + 1, tiled_rows(channels, options.p)


def chunk_sums(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """What each chunk adds to the state, `sums_shape`, and the state S, z after all of them, from an empty one."""
    problem = _Problem(inputs, options)
    sums = inputs.q.new_zeros(sums_shape(inputs, options), dtype=problem.dtype)
    states = problem.join_state(None, None)
    for block in problem.blocks():
        state = states[block].flatten(0, 1)
        for index, tokens in enumerate(problem.chunks()):
            decay, added = problem.decay(block, tokens), sums[index, block].flatten(0, 1)
            problem.update(added, problem.keys(block, tokens), problem.values(block, tokens), decay)
            state.mul_(decay.whole).add_(added)
    return sums, *problem.split_state(states)


def chunk_gradient_sums(do: Tensor, inputs: Inputs, saved: Saved, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """What each chunk's queries add to the state's gradient, as `chunk_sums`, and the incoming one's from them alone.

    They are divided by the coefficients, as the state's gradient is where it is carried.
    """
    problem = _Problem(inputs, options)
    scan = _Backward(problem, do, saved, normalize=options.normalize)
    sums = inputs.q.new_zeros(sums_shape(inputs, options), dtype=problem.dtype)
    dstates = problem.join_state(None, None)
    for block in problem.blocks():
        dstate = dstates[block].flatten(0, 1)
        for index, tokens in reversed(list(enumerate(problem.chunks()))):
            decay, added = problem.decay(block, tokens), sums[index, block].flatten(0, 1)
            dy = scan.output_gradient(block, tokens) * decay.from_start
            add_update(added, problem.queries(block, tokens), dy, problem.layout, problem.workspace)
            dstate.mul_(decay.whole).add_(added)
    return sums, *problem.split_state(dstates.mul_(problem.multiplicities))


class _Backward:
    """The two scans of the backward pass, and the gradients that they fill."""

    def __init__(self, problem: _Problem, do: Tensor, saved: Saved, *, normalize: bool) -> None:
        self.problem = problem
        self.dq = torch.empty_like(problem.q)
        self.dk, self.dv = (torch.empty_like(x, dtype=problem.dtype) for x in (problem.k, problem.v))
        B, T = problem.q.shape[:2]
        # Gradient of the summed gates; summed over all later tokens in the end, hence float64.
        self.dtotal = torch.zeros(B, T, problem.heads.state, dtype=torch.float64, device=problem.q.device)
        # Of each output's offset; summed over all tokens.
        self.doffset = torch.zeros(problem.heads.output, dtype=torch.float64, device=problem.q.device)
        self.do, self.saved, self.normalize = do, saved, normalize

    def output_gradient(self, block: slice, tokens: slice) -> Tensor:
        """Gradient of the numerator and, as one more channel, of the denominator `[n, V + 1, R C]`."""
        at = (block, tokens)
        do = self.do[at].to(self.problem.dtype)
        if not self.normalize:
            return self.problem.fold_outputs(F.pad(do, (0, 1)))
        along = -(do * self.saved.o[at]).sum(-1, keepdim=True)
        denominator = self.saved.denominator[at]
        inverse = torch.where(steep(denominator), 0, denominator.reciprocal())
        dy = torch.cat((do, along), -1).mul_(inverse[..., None])
        return self.problem.fold_outputs(bounded(dy))

    def add_key_gradients(
        self, block: slice, tokens: slice, keys: Tensor, dkeys: Tensor, dvalues: Tensor, *, first: bool
    ) -> None:
        """Store (first) or add the gradients of a chunk's keys `[n, K, C]` and values `[n, V + 1, C]`."""
        problem, at = self.problem, (block, tokens)
        if problem.log_g is not None and not first:
            self.dtotal[at] -= problem.unfold_states((keys * dkeys).sum(1, keepdim=True))[..., 0] / problem.p
        dk = gather_heads(problem.unfold_states(dkeys[:, : self.dk.shape[-1]]), problem.heads.key, 2)
        dv = gather_heads(problem.unfold_states(dvalues[:, :-1]), problem.heads.value, 2)
        self.dk[at] = dk if first else self.dk[at] + dk
        self.dv[at] = dv if first else self.dv[at] + dv

    def add_pairs(self, block: slice, tokens: slice, pairs: Tensor) -> None:
        """Give what each pair `[n, C, R C]` adds to its decay to the query, and take it from the key.

        Both in float64 and from the same numbers, so that in the sums over later tokens nothing but other pairs is
        left; a token beside itself would cancel at once. `q . dq` and `k . dk` are rounded each for itself: behind a
        gate that forgets nearly everything their difference would be nothing but that.
        """
        pairs = pairs.unflatten(2, (self.problem.heads.queries_per_state, -1))
        pairs.diagonal(dim1=1, dim2=3).zero_()
        wide = pairs.sum(2, dtype=torch.float64)  # [n, C, C]
        given = (wide.sum(1) - wide.sum(2)).unsqueeze(1)
        self.dtotal[block, tokens] += self.problem.unfold_states(given)[..., 0]

    def forwards(self, block: slice, state: Tensor | None, *, carries: bool, to_the_end: bool) -> None:
        """All that happens inside chunks, and what the past gives to dq; leaves the final state where `to_the_end`."""
        problem, chunks = self.problem, self.problem.chunks()
        p, layout, workspace = problem.p, problem.layout, problem.workspace
        for index, tokens in enumerate(chunks):
            queries, keys, values = (read(block, tokens) for read in (problem.queries, problem.keys, problem.values))
            decay, dy = problem.decay(block, tokens), self.output_gradient(block, tokens)
            weights = problem.scores(queries, keys)
            dscores = torch.bmm(values.mT, dy, out=workspace("dscores", *weights.shape))
            causal_decay = problem.causal_decay(decay)
            problem.multiply(dscores, causal_decay)
            if p == 2:
                dscores.mul_(weights)
            elif p > 2:
                dscores.mul_(torch.pow(weights, p - 1, out=workspace("lower", *weights.shape)))
            if problem.log_g is not None:
                self.add_pairs(block, tokens, torch.mul(weights, dscores, out=workspace("pairs", *weights.shape)))
            problem.multiply(weights.pow_(p), causal_decay)
            dkeys = (queries @ dscores.mT).mul_(p)
            self.add_key_gradients(block, tokens, keys, dkeys, dy @ weights.mT, first=True)
            dqueries = torch.zeros_like(queries)
            if state is not None and (carries or index > 0):
                add_gradient(dqueries, queries, dy * decay.from_start, state, layout, workspace)
                if problem.log_g is not None:
                    along = problem.unfold_outputs((queries * dqueries).sum(1, keepdim=True))[..., 0]
                    self.dtotal[block, tokens] += gather_heads(along, problem.heads.state, 2) / p
            dqueries.baddbmm_(keys, dscores, alpha=p)
            dq = problem.unfold_outputs(dqueries)
            if problem.offset is not None:
                self.doffset += dq[..., -1].sum((0, 1), dtype=torch.float64)
                dq = dq[..., :-1]
            self.dq[block, tokens] = gather_heads(dq.mul_(problem.scale), problem.heads.query, 2)
            if state is not None and (to_the_end or index + 1 < len(chunks)):
                problem.update(state, keys, values, decay)

    def backwards(
        self, block: slice, dstate: Tensor, sums: Tensor | None, *, carries: bool, to_the_start: bool
    ) -> None:
        """What the future gives to dk and dv; leaves the incoming state's gradient in `dstate` where `to_the_start`."""
        problem, chunks = self.problem, self.problem.chunks()
        layout, workspace = problem.layout, problem.workspace
        for index, tokens in reversed(list(enumerate(chunks))):
            decay = problem.decay(block, tokens)
            if carries or index + 1 < len(chunks):
                keys, values = problem.keys(block, tokens), problem.values(block, tokens)
                dvalues, dkeys = torch.zeros_like(values), torch.zeros_like(keys)
                add_query(dvalues, keys, dstate, layout, workspace)
                add_gradient(dkeys, keys, values * decay.to_end, dstate, layout, workspace)
                self.add_key_gradients(block, tokens, keys, dkeys, dvalues * decay.to_end, first=False)
            if to_the_start or index > 0:
                dstate.mul_(decay.whole)
                if sums is None:
                    dy = self.output_gradient(block, tokens) * decay.from_start
                    add_update(dstate, problem.queries(block, tokens), dy, layout, workspace)
                else:
                    dstate.add_(sums[index, block].flatten(0, 1))


def _gate_gradient(dtotal: Tensor, log_g: Tensor, heads: Heads) -> Tensor:
    """Gradient of the gates `[B, T, Hv]`: a sum over later tokens, restarted at every boundary."""
    dtotal = gather_heads(dtotal, heads.value, 2)
    T = dtotal.shape[1]
    later = F.pad(dtotal.flip(1).cumsum(1).flip(1), (0, 0, 0, 1))  # [B, T + 1, Hv], zero past the end
    forgets = log_g <= _FORGET
    positions = torch.arange(T, device=log_g.device)[:, None]
    # Where the segment of each token ends: the next boundary strictly after it, or T.
    starts = torch.where(forgets, positions, T)
    ends = F.pad(starts[:, 1:], (0, 0, 0, 1), value=T).flip(1).cummin(1).values.flip(1)
    gradient = later[:, :T] - later.gather(1, ends[:, :T])
    return torch.where(forgets, 0, gradient).to(log_g.dtype)
