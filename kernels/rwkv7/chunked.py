"""RWKV-7's time mixing in chunks: linear cost, plain PyTorch, forward and backward.

A token writes two rank-one terms into the state: `k_t v_t^T`, and `b_t u_t^T` with `b_t = -kappa_t * a_t` and what is
removed, `u_t = S_{t-1}^T kappa_t`. Inside a chunk of C tokens that starts from the state S,

    u_t = S^T (kappa_t * d_{t-1}) + sum_{j < t} (kappa_t . b_j) u_j + (kappa_t . k_j) v_j
    o_t = S^T (r_t * d_t) + sum_{j <= t} (r_t . b_j) u_j + (r_t . k_j) v_j
    S  <- diag(d_C) S + sum_j (b_j * e_j) u_j^T + (k_j * e_j) v_j^T

where each product `x . y` has a decay for each channel in it (see `pairs.py`), `d` decays from the chunk's start and
`e` to its end. The first line is a unit lower triangular system for the u of a chunk; solved once for its part without
S and once for the factor of S, it leaves for the loop over chunks two small products each:

    U = U_0 + W S ;  S <- diag(d_C) S + V_0 + (b * e)^T U

Everything else is done for a whole segment of chunks at once. On a GPU so is the loop: what a chunk does to a state is
one matrix and one addition, `S <- (diag(d_C) + (b * e)^T W) S + (V_0 + (b * e)^T U_0)`, and such steps are joined in
pairs, which takes more products, but few launches. The forward pass saves the state at every segment's
start, and the backward pass computes each segment again from there, so memory is linear in T with a small constant.

Shapes: `g` chunks in a segment, `n` heads of all sequences in a block of the batch, `m = g n`; `C` tokens in a chunk,
`N` channels. Loops run over segments and chunks, which is why this stands inside an opaque op.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.precision import accumulation_dtype
from zoo.kernels.rwkv7.call import Incoming, Mixed, MixedGradients, Saved, Tokens, nothing_kept
from zoo.kernels.rwkv7.pairs import differentiate_pairs, meet

__all__ = ["backward", "forward", "resolve_chunk_size", "saved_states"]

_CHUNK = 16


class _Working(NamedTuple):
    """How much is worked on at once."""

    tokens: int  # of a segment
    elements: int  # of one tensor with those tokens and a block of the batch
    joins: bool  # steps from state to state, rather than taking one after another


# A CPU works from its cache; a GPU wants to be filled by few launches.
_ON_CPU, _ON_GPU = _Working(256, 2**18, joins=False), _Working(8192, 2**24, joins=True)


def _power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << max(0, size - 1).bit_length()


def resolve_chunk_size(chunk_size: int, T: int) -> int:
    """The chunk length C to use, a power of two no longer than it takes; 0 chooses."""
    return min(_power_of_two(chunk_size or _CHUNK), _power_of_two(T))


def _working(chunk_size: int, device: torch.device) -> _Working:
    working = _ON_CPU if device.type == "cpu" else _ON_GPU
    return working._replace(tokens=max(_power_of_two(chunk_size), working.tokens))


def saved_states(T: int, chunk_size: int, device: torch.device) -> int:
    """How many states the forward pass saves: those at segments' starts, and the last; T may be symbolic.

    The last only serves to have more than one, as the compiler would otherwise compile again for more than one segment.
    """
    length = _working(chunk_size, device).tokens
    return (T + 2 * length - 1) // length


def _segments(T: int, chunk_size: int, device: torch.device) -> list[slice]:
    length = _working(chunk_size, device).tokens
    return [slice(start, min(start + length, T)) for start in range(0, T, length)]


def _blocks(r: Tensor, chunk_size: int) -> Iterator[slice]:
    """Blocks of the batch."""
    B, T, H, N = r.shape
    working = _working(chunk_size, r.device)
    size = max(1, working.elements // max(1, min(working.tokens, T) * H * N))
    return (slice(start, min(start + size, B)) for start in range(0, B, size))


def _fold(x: Tensor, C: int) -> Tensor:
    """Tokens `[b, t, H, N]` as chunks `[g, b, H, C, N]`, padded with zeros, which neither write nor decay."""
    padding = -x.shape[1] % C
    x = F.pad(x, (0, 0, 0, 0, 0, padding)) if padding else x
    return x.unflatten(1, (-1, C)).permute(1, 0, 3, 2, 4)


def _unfold(x: Tensor, b: int, t: int) -> Tensor:
    """The inverse of `_fold`: chunks `[g, n, C, N]` as tokens `[b, t, H, N]`."""
    return x.unflatten(1, (b, -1)).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :t]


def _chain(moves: Tensor, added: Tensor, first: Tensor) -> Tensor:
    """`x_0 = first` and `x_{i+1} = moves_i x_i + added_i`, all of them `[g + 1, n, N, N]`, in log g rounds."""
    g = moves.shape[0]
    states = first.new_empty(g + 1, *first.shape)
    states[0] = first
    pairs = g - g % 2
    if pairs:
        left, right = moves[:pairs:2], moves[1:pairs:2]
        states[: pairs + 1 : 2] = _chain(right @ left, added[1:pairs:2] + right @ added[:pairs:2], first)
        states[1:pairs:2] = left @ states[:pairs:2] + added[:pairs:2]
    if g > pairs:
        states[g] = moves[-1] @ states[g - 1] + added[-1]
    return states


class _Segment:
    """One segment of a block of the batch: its inputs as chunks, the states before them, and what they write."""

    def __init__(self, tokens: Tokens, S: Tensor, C: int) -> None:
        """Prepare and scan. Tokens are `[b, t, H, N]`, S is `[n, N, N]`."""
        r, log_w, k, v, kappa, a = (_fold(x, C) for x in tokens)
        g, N, n = r.shape[0], r.shape[-1], S.shape[0]
        self.sizes = (g, n, C, N)
        m = g * n
        self.readers, self.writers, self.written = (S.new_empty(m, C, 2, N) for _ in range(3))
        self.kappa, self.r = self._parts(self.readers)
        self.b, self.k = self._parts(self.writers)
        self.u, self.v = self._parts(self.written)
        for part, x in ((self.kappa, kappa), (self.r, r), (self.k, k), (self.v, v)):
            part.view(x.shape).copy_(x)
        self.a = a.to(S.dtype).reshape(g, n, C, N)
        torch.mul(self.kappa, self.a, out=self.b).neg_()
        w = log_w.to(S.dtype).exp().reshape(m, C, N)
        self.pairs = meet(self.readers, self.writers, w)
        scores = self.pairs.scores.view(m, C, 2, C, 2)
        self.system = -scores[:, :, 0, :, 0]  # strictly lower; the solver supplies the ones on the diagonal
        self.reads = self.readers * self.pairs.since_start
        self.writes = self.writers * self.pairs.to_end
        self.whole = self.pairs.since_start[:, -1, 1].view(g, n, N, 1)
        from_values = scores[:, :, 0, :, 1] @ self.v.view(m, C, N)
        right_sides = torch.cat((self.reads[:, :, 0], from_values), -1)
        solved = torch.linalg.solve_triangular(self.system, right_sides, upper=False, unitriangular=True)
        W, U_0 = solved.view(g, n, C, 2 * N).split(N, -1)
        self.u.copy_(U_0)
        self.W, self.removals = W, self._parts(self.writes)[0]
        self.moves = None
        if _working(C, S.device).joins:
            self.moves = (self.removals.mT @ W).add_(torch.diag_embed(self.whole.squeeze(-1)))
        self.states = self._scan(S)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two readers or writers of each token, views `[g, n, C, N]` of `x [m, C, 2, N]`."""
        first, second = x.view(*self.sizes[:3], 2, self.sizes[3]).unbind(3)
        return first, second

    def _scan(self, S: Tensor) -> Tensor:
        """States before each chunk and after the last `[g + 1, n, N, N]`; completes `u` on the way."""
        g, n, _, N = self.sizes
        _, keys = self._parts(self.writes)
        if self.moves is not None:
            states = _chain(self.moves, keys.mT @ self.v + self.removals.mT @ self.u, S)
            self.u.add_(self.W @ states[:-1])
            return states
        states = S.new_empty(g + 1, n, N, N)
        states[0] = S
        torch.matmul(keys.mT, self.v, out=states[1:])
        steps = zip(self.W, self.removals, self.whole, self.u, states[:-1], states[1:], strict=True)
        for W, b, whole, u, before, after in steps:
            u.baddbmm_(W, before)
            after.addcmul_(whole, before).baddbmm_(b.mT, u)
        return states

    def outputs(self) -> Tensor:
        """o `[g, n, C, N]`."""
        g, n, C, N = self.sizes
        scores = self.pairs.scores.view(-1, C, 2, 2 * C)[:, :, 1]
        o = torch.bmm(self.reads[:, :, 1], self.states[:-1].view(-1, N, N))
        return o.baddbmm_(scores, self.written.view(-1, 2 * C, N)).view(g, n, C, N)

    def gradients(self, do: Tensor, dS: Tensor) -> tuple[Tensor, ...]:
        """Gradients of r, log_w, k, v, kappa and a `[g, n, C, N]`, and of the first state.

        do is `[g, b, H, C, N]`, and dS `[n, N, N]` is the gradient of the last state.
        """
        g, n, C, N = self.sizes
        m = g * n
        scores = self.pairs.scores.view(m, C, 2, C, 2)
        dread = torch.empty_like(self.readers)  # of what kappa reads, and of what r reads
        dheld, do_chunks = self._parts(dread)
        do_chunks.view(do.shape).copy_(do)
        do = dread[:, :, 1]
        du = (scores[:, :, 1, :, 0].mT @ do).view(g, n, C, N)
        dstates = self._scan_back(du, do, dS)
        dafter = dstates[1:].reshape(m, N, N)
        before = self.states[:-1].reshape(m, N, N)
        solved = torch.linalg.solve_triangular(self.system.mT, du.view(m, C, N), upper=True, unitriangular=True)
        dheld.copy_(solved.view(g, n, C, N))
        dread, written = dread.view(m, 2 * C, N), self.written.view(m, 2 * C, N)
        dv = torch.bmm(self.writes[:, :, 1], dafter).baddbmm_(scores[..., 1].reshape(m, 2 * C, C).mT, dread)
        dreaders, dwriters, dlog_w = differentiate_pairs(
            dread @ written.mT,
            (dread @ before.mT).view(m, C, 2, N),
            (written @ dafter.mT).view(m, C, 2, N),
            (before * dafter).sum(-1) * self.whole.view(m, N),
            self.readers,
            self.writers,
            self.pairs,
        )
        (dkappa, dr), (db, dk) = self._parts(dreaders), self._parts(dwriters)
        by_token = (dr, dlog_w.view(g, n, C, N), dk, dv.view(g, n, C, N), dkappa - db * self.a, -db * self.kappa)
        return *by_token, dstates[0]

    def _scan_back(self, du: Tensor, do: Tensor, dS: Tensor) -> Tensor:
        """Gradients of the states before each chunk and after the last; completes `du [g, n, C, N]` on the way."""
        g, _, _, N = self.sizes
        dstates = torch.empty_like(self.states)
        dstates[g] = dS
        torch.bmm(self.reads[:, :, 1].mT, do, out=dstates[:-1].view(-1, N, N))
        if self.moves is not None:
            added = dstates[:-1] + self.W.mT @ du
            dstates = _chain(self.moves.mT.flip(0), added.flip(0), dS).flip(0)
            du.add_(self.removals @ dstates[1:])
            return dstates
        steps = zip(self.W, self.removals, self.whole, du, dstates[:-1], dstates[1:], strict=True)
        for W, b, whole, du_chunk, before, after in reversed(list(steps)):
            du_chunk.baddbmm_(b, after)
            before.addcmul_(whole, after).baddbmm_(W.mT, du_chunk)
        return dstates


def forward(tokens: Tokens, S: Tensor | None, chunk_size: int) -> Mixed:
    """The output, the last state, and states `[segments + 1, ...]`: at segments' starts, and at the end."""
    r, v = tokens.r, tokens.v
    B, T, H, N = r.shape
    dtype, C = accumulation_dtype(r.dtype), resolve_chunk_size(chunk_size, T)
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    segments = _segments(T, chunk_size, r.device)
    states = r.new_empty(saved_states(T, chunk_size, r.device), B, H, N, N, dtype=dtype)
    states[0] = 0 if S is None else S
    for rows in _blocks(r, chunk_size):
        for index, at in enumerate(segments):
            inputs = Tokens(*(x[rows, at] for x in tokens))
            segment = _Segment(inputs, states[index, rows].flatten(0, 1), C)
            o[rows, at] = _unfold(segment.outputs(), *inputs.r.shape[:2])
            states[index + 1, rows] = segment.states[-1].unflatten(0, (-1, H))
    return Mixed(o, states[-1].clone(), states, *nothing_kept(r))


def backward(incoming: Incoming, tokens: Tokens, saved: Saved, chunk_size: int) -> MixedGradients:
    """Gradients of tokens and state, from what `forward` saved."""
    r = tokens.r
    B, T, H, N = r.shape
    C = resolve_chunk_size(chunk_size, T)
    gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tokens]
    dstate = r.new_zeros(B, H, N, N, dtype=accumulation_dtype(r.dtype))
    if incoming.dS is not None:
        dstate.copy_(incoming.dS)
    segments = _segments(T, chunk_size, r.device)
    for rows in _blocks(r, chunk_size):
        for index in reversed(range(len(segments))):
            at = (rows, segments[index])
            inputs = Tokens(*(x[at] for x in tokens))
            segment = _Segment(inputs, saved.states[index, rows].flatten(0, 1), C)
            *by_token, dstart = segment.gradients(_fold(incoming.do[at], C), dstate[rows].flatten(0, 1))
            for gradient, part in zip(gradients, by_token, strict=True):
                gradient[at] = _unfold(part, *inputs.r.shape[:2])
            dstate[rows] = dstart.unflatten(0, (-1, H))
    return MixedGradients._make((*gradients, dstate.new_empty(0) if saved.S is None else dstate))
