"""The definition of the delta rule, written to be read: one token at a time.

Everything faster is tested against this. Plain differentiable PyTorch in any floating dtype. Shapes: q `[B, T, Hq, K]`,
k `[B, T, Hk, K]`, v `[B, T, Hv, V]`, log_g `[B, T, Hv]` or `[B, T, Hv, K]` or None, beta `[B, T, Hv]` or None; S
`[B, Hv, D, V]`, or None for an empty state.

Sources: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv 2406.06484;
Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464; Kimi Team, "Kimi Linear", arXiv 2510.26692. The
state of power p: Gelada, Buckman, Zhang, Bach, arXiv 2507.04239.
"""

import torch
from torch import Tensor

from zoo.kernels.delta.call import Inputs, Options, Outputs
from zoo.kernels.power.call import join_sequences, or_empty, take_sequence
from zoo.kernels.power.expansion import coefficients, expand, state_size
from zoo.kernels.power.heads import spread_heads
from zoo.kernels.precision import cast_for_autocast, without_autocast

__all__ = ["recurrent", "run_reference"]


def recurrent(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """`S_t = g_t S_{t-1} + m(k_t) u_t^T` with `u_t = beta_t (v_t - (g_t S_{t-1})^T c m(k_t))`, or `u_t = v_t`.

    `m` are the monomials of degree p and `c` their coefficients: the vector itself and ones for p = 1. Returns
    `o_t = S_t^T c m(scale q_t)` `[B, T, Hv, V]` in the dtype of v, and the state after the last token.
    """
    q, k, v, log_g, beta, S, _ = inputs
    (B, T, H, V), K, p, dtype = v.shape, k.shape[-1], options.p, inputs.accumulation
    S = v.new_zeros(B, H, state_size(K, p), V, dtype=dtype) if S is None else S.to(dtype)
    c = coefficients(K, p, dtype, q.device)
    keys = spread_heads(expand(k.to(dtype), p), H, 2)  # [B, T, H, D]
    queries = spread_heads(c * expand(q.to(dtype) * options.scale, p), H, 2)  # [B, T, H, D]
    values = v.to(dtype)
    log_g = log_g[..., None] if log_g is not None and not inputs.gates_channels else log_g
    gates = None if log_g is None else log_g.to(dtype).exp()  # [B, T, H, 1 or K]
    rates = None if beta is None else beta.to(dtype)[..., None]  # [B, T, H, 1]

    outputs = []
    for t in range(T):
        if gates is not None:
            S = gates[:, t, :, :, None] * S
        u = values[:, t]
        if rates is not None:
            u = rates[:, t] * (u - torch.einsum("bhd,bhdv->bhv", c * keys[:, t], S))
        S = S + keys[:, t, :, :, None] * u[:, :, None, :]
        outputs.append(torch.einsum("bhd,bhdv->bhv", queries[:, t], S))
    o = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(values)
    return o.to(v.dtype), S


def run_reference(inputs: Inputs, options: Options) -> Outputs:
    """Run the recurrence, once for each packed sequence."""
    q, k, v = cast_for_autocast(inputs.q, inputs.k, inputs.v)
    inputs = inputs._replace(q=q, k=k, v=v)
    with without_autocast(q):
        nothing = [or_empty(None, q)] * 2  # is saved
        if inputs.cu_seqlens is None:
            return Outputs(*recurrent(inputs, options), *nothing)
        parts = [recurrent(take_sequence(inputs, *at), options) for at in inputs.sequences()]
        return join_sequences([Outputs(*part, *nothing) for part in parts])
