"""How far rounding may move the results and gradients of a problem: bounds computed in float64 from the problem itself.

First-order rounding analysis, with unit relative errors in every elementary step. With `s = scale q . k` and
`A = |scale| |q| . |k|`:

- the weight `s^p` of two tokens in one chunk is off by `p |s|^(p-1) A`, and numerator and denominator share that error;
- what goes through a state is a sum over monomials, `A^p` in size however much of it cancels. Where `A^p` is far above
  `s^p`, every state form loses digits, the recurrence too;
- sums and products of these are off by what their terms are off by, plus the sizes of their terms.

An offset is one more channel, of keys that all have it alike.

A denominator that may be all error bounds nothing: what depends on it has a bound above `UNBOUNDED`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.power import state_size
from zoo.kernels.power.expansion import coefficients, expand
from zoo.kernels.power.heads import gather_heads, spread_heads
from zoo.kernels.power.offset import key_channels, query_channels
from zoo.kernels.power.reference import _decays

from .problems import Problem, Tensors

__all__ = ["UNBOUNDED", "error_bounds"]

UNBOUNDED = 1e50


class _Spread(NamedTuple):
    """A problem in float64, every head an output head, heads before tokens; S and z side by side."""

    q: Tensor  # [B, Ho, T, K], or K + 1 with an offset
    k: Tensor  # [B, Ho, T, K]
    v: Tensor  # [B, Ho, T, V]
    between: Tensor  # decays [B, Ho, T, T], causal
    from_start: Tensor  # [B, Ho, T]
    to_end: Tensor  # [B, Ho, T]
    state: Tensor  # [B, Ho, D, V + 1]
    do: Tensor  # [B, Ho, T, V]
    dstate: Tensor  # [B, Ho, D, V + 1]


def _spread(problem: Problem) -> _Spread:
    heads = problem.heads
    B, T, _, K = problem.q.shape
    D, V = state_size(K, problem.p, offset=problem.offset is not None), problem.v.shape[-1]
    offset = None if problem.offset is None else problem.offset.double() / problem.scale
    q, k = query_channels(problem.q.double(), offset), key_channels(problem.k.double(), offset)

    def tokens(x: Tensor | None, *shape: int) -> Tensor:
        x = torch.zeros(B, T, heads.output, *shape) if x is None else x
        return spread_heads(x.double(), heads.output, 2).transpose(1, 2)

    def states(S: Tensor | None, z: Tensor | None) -> Tensor:
        S = torch.zeros(B, heads.state, D, V) if S is None else S
        z = torch.zeros(B, heads.state, D) if z is None else z
        return spread_heads(torch.cat((S, z[..., None]), -1).double(), heads.output, 1)

    decays = _decays(tokens(problem.log_g).transpose(1, 2), torch.float64)
    # A state belongs to all its output heads, which share its gradient.
    dstate = states(problem.dS, problem.dz) / heads.queries_per_state
    return _Spread(
        *(tokens(x) for x in (q, k, problem.v)), *decays,
        states(problem.S, problem.z), tokens(problem.do, V), dstate,
    )  # fmt: skip


class _Weights(NamedTuple):
    """Of each query and key `[B, Ho, T, T]`, decay included and without signs."""

    together: Tensor  # whether both stand in one chunk
    exact: Tensor
    size: Tensor  # of the terms that are added up to a weight
    shared: Tensor  # error of a weight, the same in numerator and denominator
    slope: Tensor  # size of the terms of its derivative for s
    slope_error: Tensor


def _weights(x: _Spread, p: int, scale: float, chunk: int) -> _Weights:
    s = (scale * x.q @ x.k.mT).abs()
    A = abs(scale) * x.q.abs() @ x.k.abs().mT
    at = torch.arange(s.shape[-1])
    together = at[:, None] // chunk == at // chunk if chunk else torch.zeros(s.shape[-2:], dtype=torch.bool)
    size = torch.where(together, s, A)
    return _Weights(
        together=together,
        exact=x.between * s**p,
        size=x.between * size**p,
        shared=torch.where(together, x.between * p * s ** (p - 1) * A, 0),
        slope=x.between * p * size ** (p - 1),
        slope_error=torch.where(together, x.between * p * (p - 1) * s ** max(0, p - 2) * A, 0),
    )


class _Outputs(NamedTuple):
    """Bounds of o, and of the gradients that o's gradient gives."""

    o: Tensor  # [B, Ho, T, V]
    numerator: Tensor  # [B, Ho, T, V]
    denominator: Tensor  # [B, Ho, T, 1]
    s: Tensor  # of each query and key [B, Ho, T, T]


def _plain_outputs(x: _Spread, w: _Weights, past: Tensor) -> _Outputs:
    """Not normalised; `past` is the size of what the incoming state gives `[B, Ho, T, V + 1]`."""
    do, v = x.do.abs(), x.v.abs()
    return _Outputs(
        o=(w.size + w.shared) @ v + past[..., :-1],
        numerator=do,
        denominator=torch.zeros_like(past[..., -1:]),
        s=(do @ v.mT) * w.slope + (x.do @ x.v.mT).abs() * w.slope_error,
    )


def _normalized_outputs(x: _Spread, w: _Weights, past: Tensor, exact_past: Tensor, tiny: float) -> _Outputs:
    """The ratio of numerator and denominator; `exact_past` is what the incoming state gives, signs and all."""
    denominator = w.exact.sum(-1, keepdim=True) + exact_past[..., -1:]
    size = w.size.sum(-1, keepdim=True) + past[..., -1:]
    error = size + w.shared.sum(-1, keepdim=True)
    left = denominator.abs() - tiny * error
    inverse = torch.where(denominator == 0, 0, torch.where(left > 0, 1 / left, UNBOUNDED**2))
    condition = error * inverse
    o = torch.where(denominator == 0, 0, (w.exact @ x.v + exact_past[..., :-1]) / denominator)

    # An error that numerator and denominator share moves o along v - o only.
    columns = zip(x.v.unbind(-1), o.unbind(-1), strict=True)
    moved = torch.stack([(w.shared * (v[..., None, :] - mean[..., None]).abs()).sum(-1) for v, mean in columns], -1)
    do, v, o_size = x.do.abs(), x.v.abs(), o.abs()
    o_error = inverse * (moved + w.size @ v + past[..., :-1] + o_size * size)

    # The gradient of a weight is do . (v - o) / denominator.
    sizes = inverse * (do @ v.mT + (do * o_size).sum(-1, keepdim=True))
    exact = inverse * (x.do @ x.v.mT - (x.do * o).sum(-1, keepdim=True)).abs()
    errors = sizes + inverse * (do * o_error).sum(-1, keepdim=True) + condition * torch.where(w.together, exact, sizes)
    return _Outputs(
        o=o_error,
        numerator=do * inverse * (1 + condition),
        denominator=inverse * (do * (o_size * (1 + condition) + o_error)).sum(-1, keepdim=True),
        s=errors * w.slope + exact * w.slope_error,
    )


class _Bounds(NamedTuple):
    """Bounds where every head is an output head."""

    o: Tensor
    after: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dstate: Tensor
    along: Tensor  # of what the gates' gradient sums over later tokens [B, Ho, T]


def _spread_bounds(problem: Problem, chunk: int, tiny: float) -> _Bounds:
    p, scale, x = problem.p, problem.scale, _spread(problem)
    w, size = _weights(x, p, scale, chunk), abs(scale)
    c = coefficients(x.q.shape[-1], p, torch.float64, x.q.device)
    q, k, v, state = (y.abs().requires_grad_() for y in (x.q, x.k, x.v, x.state))
    # What the incoming state gives, and the outgoing state: polynomials with positive coefficients.
    past = (c * expand(size * q, p) * x.from_start[..., None]) @ state
    kept = x.from_start[..., -1:, None] if q.shape[2] else 1
    after = kept * state + (expand(k, p) * x.to_end[..., None]).mT @ F.pad(v, (0, 1), value=1.0)
    if problem.normalize:
        exact_past = (c * expand(scale * x.q, p) * x.from_start[..., None]) @ x.state
        outputs = _normalized_outputs(x, w, past.detach(), exact_past, tiny)
    else:
        outputs = _plain_outputs(x, w, past.detach())
    dpast = torch.cat((outputs.numerator, outputs.denominator), -1)
    dq, dk, dv, dstate = torch.autograd.grad((past, after), (q, k, v, state), (dpast, x.dstate.abs()))
    q, k, after = q.detach(), k.detach(), after.detach()
    dq = dq + size * outputs.s @ k
    dk = dk + size * outputs.s.mT @ q
    dv = dv + (w.size + w.shared).mT @ outputs.numerator
    # The contract sums (q . dq - k . dk) / p, and the outgoing state's part at the last token.
    along = (q * dq + k * dk).sum(-1) / p
    along[..., -1:] += (after * x.dstate.abs()).sum((-2, -1))[..., None]
    return _Bounds(outputs.o, after, dq, dk, dv, dstate, along)


def error_bounds(problem: Problem, chunk: int, tiny: float) -> Tensors:
    """Bounds of results and gradients, by the names that `run` gives them.

    Tokens meet directly within chunks of length `chunk`, and through a state elsewhere (0: everywhere); `tiny` is what
    unit errors amount to, and decides which denominators are nothing but error.
    """
    heads, spread, K = problem.heads, _spread_bounds(problem, chunk, tiny), problem.q.shape[-1]
    after = spread.after[:, :: heads.queries_per_state]
    bounds = {
        "o": spread.o.transpose(1, 2),
        "S_out": after[..., :-1],
        "z_out": after[..., -1],
        "dq": gather_heads(spread.dq[..., :K].transpose(1, 2), heads.query, 2),
        "dk": gather_heads(spread.dk[..., :K].transpose(1, 2), heads.key, 2),
        "dv": gather_heads(spread.dv.transpose(1, 2), heads.value, 2),
    }
    if problem.log_g is not None:
        along = gather_heads(spread.along.transpose(1, 2), heads.value, 2)
        bounds["dlog_g"] = _sum_later(along**2, problem.log_g).sqrt()
    if problem.S is not None:
        dstate = gather_heads(spread.dstate, heads.state, 1)
        bounds |= {"dS": dstate[..., :-1], "dz": dstate[..., -1]}
    if problem.offset is not None:
        of_tokens = gather_heads(spread.dq[..., -1].transpose(1, 2), heads.query, 2)
        bounds["doffset"] = (of_tokens**2).sum((0, 1)).sqrt() / abs(problem.scale)
    return bounds


def _sum_later(x: Tensor, log_g: Tensor) -> Tensor:
    """Sums over each token and the later ones up to the next boundary; zero at boundaries. Both `[B, T, Hv]`."""
    total, result = torch.zeros_like(x[:, :1]), [x[:, :0]]
    for now, gate in zip(reversed(x.split(1, 1)), reversed(log_g.split(1, 1)), strict=True):
        total = torch.where(gate == -torch.inf, 0, total + now)
        result.append(total)
    return torch.cat(result[:0:-1] + result[:1], 1)
