"""The definition of power attention, written to be read: as a recurrence and as a quadratic form.

Everything faster is tested against these. Both are plain differentiable PyTorch, work in any floating dtype, take the
packed state in and out, and follow the head rule. Sequences are not packed, and no S and z are an empty state.

Source: Gelada, Buckman, Zhang, Bach, "Scaling Context Requires Rethinking Attention", arXiv 2507.04239.
"""

from typing import Literal

import torch
from torch import Tensor

from zoo.kernels.power.call import Inputs, take_sequence
from zoo.kernels.power.expansion import coefficients, expand, state_size
from zoo.kernels.power.heads import spread_heads
from zoo.kernels.power.offset import key_channels, query_channels
from zoo.kernels.power.state import PowerState
from zoo.kernels.precision import accumulation_dtype, cast_for_autocast, without_autocast

__all__ = ["bounded", "quadratic", "recurrent", "run_reference", "steep", "vanishes"]


def vanishes(denominator: Tensor) -> Tensor:
    """Where a denominator counts as zero, and so does the output: the weights in it have lost digits to underflow."""
    return denominator.abs() < torch.finfo(denominator.dtype).tiny


def steep(denominator: Tensor) -> Tensor:
    """Where a denominator is so small that its inverse, times what it meets, may be beyond the dtype's range.

    Gradients count as zero there.
    """
    return denominator.abs() < (2.0**-1000 if denominator.dtype == torch.float64 else 2.0**-110)


def bounded(gradient: Tensor) -> Tensor:
    """`gradient` of a ratio's parts, kept so far from overflow, in place, that what it is multiplied by stays finite.

    It is that large only beside a denominator in which nearly everything cancelled, and then it is all error.
    """
    limit = 2.0**1000 if gradient.dtype == torch.float64 else 2.0**110
    return gradient.clamp_(-limit, limit)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator`, zero where the denominator vanishes; without gradients where it is steep."""
    empty, flat = vanishes(denominator), steep(denominator)
    constant = torch.where(empty, 0, numerator.detach() / torch.where(empty, 1, denominator.detach()))
    return torch.where(flat, constant, numerator / torch.where(flat, 1, denominator))


def recurrent(inputs: Inputs, *, p: int, scale: float, normalize: bool) -> tuple[Tensor, PowerState]:
    """One token at a time, exactly as the state is defined: `S_t = g_t S_{t-1} + m(k_t) v_t^T`.

    Returns o `[B, T, Ho, V]` in the dtype of v, and the state after the last token.
    """
    q, k, v, log_g, S, z, offset, _ = inputs
    heads, dtype = inputs.heads, accumulation_dtype(q.dtype)
    q, k = query_channels(q.to(dtype) * scale, offset), key_channels(k.to(dtype), offset)
    B, T, V, D = q.shape[0], q.shape[1], v.shape[-1], state_size(q.shape[-1], p)
    S = q.new_zeros(B, heads.state, D, V, dtype=dtype) if S is None else S.to(dtype)
    z = q.new_zeros(B, heads.state, D, dtype=dtype) if z is None else z.to(dtype)
    c = coefficients(q.shape[-1], p, dtype, q.device)
    keys = spread_heads(expand(k, p), heads.state, 2)  # [B, T, Hs, D]
    queries = spread_heads(c * expand(q, p), heads.output, 2)  # [B, T, Ho, D]
    values = spread_heads(v.to(dtype), heads.state, 2)  # [B, T, Hs, V]
    gates = None if log_g is None else spread_heads(log_g.to(dtype).exp(), heads.state, 2)  # [B, T, Hs]

    outputs = []
    for t in range(T):
        if gates is not None:
            S, z = gates[:, t, :, None, None] * S, gates[:, t, :, None] * z
        S = S + keys[:, t, :, :, None] * values[:, t, :, None, :]
        z = z + keys[:, t]
        o = torch.einsum("bhd,bhdv->bhv", queries[:, t], spread_heads(S, heads.output, 1))
        if normalize:
            denominator = torch.einsum("bhd,bhd->bh", queries[:, t], spread_heads(z, heads.output, 1))
            o = _ratio(o, denominator[..., None])
        outputs.append(o)
    o = torch.stack(outputs, dim=1) if outputs else q.new_zeros(B, 0, heads.output, V, dtype=dtype)
    return o.to(v.dtype), PowerState(S, z)


def _decays(log_g: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Decays between tokens `[B, H, T, T]` (causal), from the start `[B, H, T]`, and to the end `[B, H, T]`.

    Sums run in float64, because a float32 sum over thousands of tokens is wrong on neighbours; `-inf` is a segment
    boundary and never enters a sum.
    """
    log_g = log_g.transpose(1, 2)
    boundary = log_g == -torch.inf
    total = torch.where(boundary, 0, log_g).double().cumsum(-1)
    segment = boundary.cumsum(-1)
    T = log_g.shape[-1]
    causal = torch.ones(T, T, dtype=torch.bool, device=log_g.device).tril()
    visible = causal & (segment[..., :, None] == segment[..., None, :])
    difference = torch.where(visible, total[..., :, None] - total[..., None, :], -torch.inf)
    from_start = torch.where(segment == 0, total, -torch.inf)
    to_end = torch.where(segment == segment[..., -1:], total[..., -1:] - total, -torch.inf)
    return difference.exp().to(dtype), from_start.exp().to(dtype), to_end.exp().to(dtype)


def quadratic(inputs: Inputs, *, p: int, scale: float, normalize: bool) -> tuple[Tensor, PowerState]:
    """All pairs of tokens at once: `w_tj = exp(G_t - G_j) (scale q_t . k_j)^p`, then `w v`. Quadratic in T.

    Scores and sums are float32 (float64 for float64 inputs); weights are rounded to the dtype of v before they meet
    it, and vectors are expanded in their own dtype (with an offset, in that of the sums), as in a plain implementation
    in that dtype, which makes this the baseline of the error law.
    Returns o `[B, T, Ho, V]` in the dtype of v, and the state after the last token.
    """
    q, k, v, log_g, S, z, offset, _ = inputs
    heads, dtype = inputs.heads, accumulation_dtype(q.dtype)
    B, T, V = q.shape[0], q.shape[1], v.shape[-1]
    if offset is not None:
        q, k = query_channels(q.to(dtype), offset / scale), key_channels(k.to(dtype), offset)
    if log_g is None:
        log_g = q.new_zeros(B, T, heads.state, dtype=dtype)
    if T == 0:  # nothing to attend to, and no last token to decay to
        D = state_size(q.shape[-1], p)
        S = q.new_zeros(B, heads.state, D, V, dtype=dtype) if S is None else S.to(dtype)
        z = q.new_zeros(B, heads.state, D, dtype=dtype) if z is None else z.to(dtype)
        return v.new_zeros(B, 0, heads.output, V), PowerState(S, z)
    between, from_start, to_end = _decays(spread_heads(log_g, heads.state, 2), dtype)
    queries, keys, values = (
        spread_heads(x, count, 2).transpose(1, 2)
        for x, count in ((q, heads.output), (k, heads.output), (v, heads.output))
    )
    scores = torch.einsum("bhtk,bhjk->bhtj", queries.to(dtype), keys.to(dtype)) * scale
    weights = scores**p * spread_heads(between, heads.output, 1)
    numerator = torch.einsum("bhtj,bhjv->bhtv", weights.to(v.dtype).to(dtype), values.to(dtype))
    denominator = weights.sum(-1)

    if S is not None and z is not None:
        c = coefficients(q.shape[-1], p, dtype, q.device)
        factors = c * scale**p * spread_heads(from_start, heads.output, 1)[..., None]
        phi = (expand(queries, p) * factors).to(v.dtype).to(dtype)
        numerator = numerator + phi @ spread_heads(S.to(dtype), heads.output, 1)
        denominator = denominator + (phi @ spread_heads(z.to(dtype), heads.output, 1)[..., None])[..., 0]

    o = _ratio(numerator, denominator[..., None]) if normalize else numerator
    phi = expand(spread_heads(k, heads.state, 2).transpose(1, 2), p) * to_end[..., None]
    phi = phi.to(v.dtype).to(dtype)
    S_out = phi.mT @ spread_heads(v, heads.state, 2).transpose(1, 2).to(dtype)
    z_out = phi.sum(2)
    if S is not None and z is not None:
        S_out = S_out + from_start[..., -1, None, None] * S.to(dtype)
        z_out = z_out + from_start[..., -1, None] * z.to(dtype)
    return o.transpose(1, 2).to(v.dtype), PowerState(S_out, z_out)


def run_reference(
    inputs: Inputs, form: Literal["quadratic", "recurrent"], *, p: int, scale: float, normalize: bool
) -> tuple[Tensor, PowerState]:
    """Run one of the two, once for each packed sequence; under autocast in its dtype."""
    run = quadratic if form == "quadratic" else recurrent
    q, k, v = cast_for_autocast(inputs.q, inputs.k, inputs.v)
    inputs = inputs._replace(q=q, k=k, v=v)
    with without_autocast(q):
        if inputs.cu_seqlens is None:
            return run(inputs, p=p, scale=scale, normalize=normalize)
        parts = [
            run(take_sequence(inputs, row, at), p=p, scale=scale, normalize=normalize) for row, at in inputs.sequences()
        ]
    outputs, states = zip(*parts, strict=True)
    return torch.cat(outputs, dim=1), PowerState(*(torch.cat(x) for x in zip(*states, strict=True)))
