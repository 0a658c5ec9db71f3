"""Power attention for users: defaults, checks, and the choice of implementation.

The shape legend: `B` batch, `T` tokens, `Hq`, `Hk`, `Hv` query, key and value heads, `Hs = max(Hk, Hv)` states,
`Ho = max(Hq, Hs)` outputs, `K` key dim, `V` value dim, `D = C(K + p - 1, p)` state rows, `C(K + p, p)` with an offset.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.errors import InputError
from zoo.kernels.power import op
from zoo.kernels.power.call import Inputs, Options, Step
from zoo.kernels.power.checks import check_arguments, check_values, resolve_offset
from zoo.kernels.power.context import attend_over
from zoo.kernels.power.reference import run_reference
from zoo.kernels.power.state import PowerState
from zoo.kernels.power.supported import check_triton, supports_triton
from zoo.kernels.precision import autocast_dtype, cast_for_autocast, without_autocast
from zoo.kernels.sequence import SequenceGroup
from zoo.kernels.transforms import check_untransformed, transformed

__all__ = ["Implementation", "PowerAttentionOutput", "power_attention", "power_attention_step"]

Implementation = Literal["triton", "chunked", "quadratic", "recurrent"]


class PowerAttentionOutput(NamedTuple):
    """o `[B, T, Ho, V]` in the dtype of v, and the state after the last token where it was asked for."""

    o: Tensor
    state: PowerState | None


def power_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    *,
    p: int = 2,
    scale: float | None = None,
    offset: float | Tensor = 0.0,
    normalize: bool | None = None,
    state: PowerState | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    lengths: Tensor | None = None,
    chunk_size: int | None = None,
    save_states: bool = True,
    impl: Implementation | None = None,
    group: SequenceGroup | None = None,
) -> PowerAttentionOutput:
    """Attention with weights `exp(G_t - G_j) (offset + scale q_t . k_j)^p`, at linear cost in T.

    `G` sums the log gates, and `o_t` is the weighted sum of values, divided by the sum of weights where `normalize`.
    `p = 1` is (gated) linear attention. Splitting a sequence anywhere and passing the state on changes nothing.

    Args:
        q: queries `[B, T, Hq, K]`, float16, bfloat16, float32 or float64.
        k: keys `[B, T, Hk, K]`. Head counts divide one another and heads are shared in consecutive groups: grouped
            queries are Hk = Hv < Hq, Mamba-2's groups are Hq = Hk < Hv. Nothing needs to be repeated beforehand.
        v: values `[B, T, Hv, V]`.
        log_g: log gates `[B, T, Hv]`, float32, at most 0; `-inf` forgets all before that token. None: no gates.
        p: the power, from 1 on; it sets the state's size D.
        scale: factor on `q . k`; None: `1 / sqrt(K)`.
        offset: added to scores: a number, or `[Hq]`, one a query head, with a gradient. `(1 + s / p)^p` comes near
            `exp(s)` as p grows. A state then has C(K + p, p) rows, also where a tensor of offsets holds zeros; for
            the number 0 it has none more.
        normalize: divide by the sum of weights; None: for even p. Odd p cannot be normalised.
        state: what the past left (see `PowerState`); None: nothing.
        return_state: also return the state after the last token.
        cu_seqlens: int32 `[n + 1]`, boundaries of n sequences packed into B = 1; the state's batch is then n.
        lengths: int `[B]`, lengths of right-padded sequences: padding gives zero outputs and never enters the state.
        chunk_size: tokens a chunk; None: chosen for speed. It changes speed and rounding only.
        save_states: on a GPU, keep the states between chunks for the backward pass, which saves computing them again;
            they take about 2 D V bytes for each head and chunk of about a thousand tokens.
        impl: `"triton"`, `"chunked"`, `"quadratic"` or `"recurrent"`, never replaced silently; None: the fastest
            for the device, the Triton kernels on a GPU if they take the inputs, and under torch.func's transforms and
            in forward mode the quadratic form, which takes memory quadratic in T.
        group: processes of which each gives its share of the tokens, all of one length, with its `lengths`, and which
            all call this; None: the tokens are all there are. States, the same on all processes, are those before and
            after all shares; there is no `cu_seqlens`, nor are there lengths beside an offset.

    Returns:
        `(o, state)`; state is None unless `return_state`.

    Raises:
        InputError: names the argument, what it was and what it must be. Values of gates and lengths are checked on the
            CPU outside the compiler, and elsewhere under `zoo.debug_checks()`.

    Source: Gelada, Buckman, Zhang, Bach, "Scaling Context Requires Rethinking Attention", arXiv 2507.04239; the head
    rule and the gates' position follow gated linear attention (Yang et al., arXiv 2312.06635).
    """
    normalize = p % 2 == 0 if normalize is None else normalize
    S, z = (None, None) if state is None else state
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    offsets = resolve_offset(offset, q, scale) if q.dim() == 4 else None
    check_arguments(Inputs(q, k, v, log_g, S, z, offsets, cu_seqlens), p=p, normalize=normalize, tokens=True)
    _check_options(q, cu_seqlens, lengths, chunk_size, impl)
    check_values(None, cu_seqlens, lengths, q.shape[1])
    if lengths is not None:
        q, k, v, log_g = _without_padding(q, k, v, log_g, lengths)
    check_values(log_g, None, None, q.shape[1])
    inputs = Inputs(q, k, v, log_g, S, z, offsets, cu_seqlens)
    options = Options(p=p, scale=scale, normalize=normalize, chunk_size=chunk_size or 0, return_state=return_state)
    if group is not None:
        if lengths is not None and offsets is not None:
            raise InputError("lengths: expected None beside an offset where several processes have one sequence")
        return _attend_over(inputs, options, impl, group, save_states=save_states)
    if lengths is None or offsets is None:
        return _attend(inputs, options, impl, save_states=save_states)
    o, after = _attend(_apart_from_padding(inputs, lengths), options, impl, save_states=save_states)
    after = None if after is None else PowerState(*(x.unflatten(0, (-1, 2))[:, 0] for x in after))
    return PowerAttentionOutput(o.view(*q.shape[:2], *o.shape[2:]), after)


def _attend(
    inputs: Inputs, options: Options, impl: Implementation | None, *, save_states: bool
) -> PowerAttentionOutput:
    """Attention by the implementation of this name, None for the fastest."""
    p = options.p
    if impl in ("triton", "chunked"):
        check_untransformed(impl)
    if impl in ("quadratic", "recurrent") or transformed():
        form: Literal["quadratic", "recurrent"] = "recurrent" if impl == "recurrent" else "quadratic"
        o, after = run_reference(inputs, form, p=p, scale=options.scale, normalize=options.normalize)
        return PowerAttentionOutput(o, after if options.return_state else None)
    inputs, options = _choose(inputs, options, impl, save_states=save_states)
    o, _, S, z, *_ = op.attend(*inputs, *options)
    return PowerAttentionOutput(o, PowerState(S, z) if options.return_state else None)


def _choose(
    inputs: Inputs, options: Options, impl: Implementation | None, *, save_states: bool
) -> tuple[Inputs, Options]:
    """The call by the kernels or in chunks, and what it saves for a backward pass."""
    (q, k, v, *_), p, has_offset = inputs, options.p, inputs.offset is not None
    dtype = autocast_dtype(q)
    if impl == "triton":
        check_triton(q, v, dtype, p, offset=has_offset)
    wants_triton = impl == "triton" or (impl is None and supports_triton(q, v, dtype, p, offset=has_offset))
    use_triton = wants_triton and q.shape[0] > 0 and q.shape[1] > 0  # there is nothing to launch for no tokens
    if use_triton:
        # Here, and not inside the op, where checkpointing would keep the copies with the op's outputs.
        inputs = inputs._replace(q=q.contiguous(), k=k.contiguous(), v=v.contiguous())
    wants_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    options = options._replace(
        use_triton=use_triton,
        save_states=save_states and wants_gradient,
        save_output=options.normalize and wants_gradient,
    )
    return inputs, options


def power_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    *,
    state: PowerState,
    p: int = 2,
    scale: float | None = None,
    offset: float | Tensor = 0.0,
    normalize: bool | None = None,
) -> Tensor:
    """One token of `power_attention`, in place on the state's buffers, so that it can run inside a CUDA graph.

    Args:
        q: query `[B, Hq, K]`; k: key `[B, Hk, K]`; v: value `[B, Hv, V]`; log_g: log gate `[B, Hv]`, float32, or None.
        state: `S [B, Hs, D, V]` and `z [B, Hs, D]`, float32; both are overwritten.
        p, scale, offset, normalize: as in `power_attention`.

    Returns:
        o `[B, Ho, V]` in the dtype of v. There is no gradient through a step.

    Raises:
        InputError: names the argument, what it was and what it must be.
    """
    normalize = p % 2 == 0 if normalize is None else normalize
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    offsets = resolve_offset(offset, q, scale) if q.dim() == 3 else None
    check_arguments(Inputs(q, k, v, log_g, *state, offsets), p=p, normalize=normalize, tokens=False)
    check_values(log_g, None, None, 1)
    return op.step(*Step(q, k, v, log_g, *state, offsets, p=p, scale=scale, normalize=normalize))


def _check_options(
    q: Tensor, cu_seqlens: Tensor | None, lengths: Tensor | None, chunk_size: int | None, impl: str | None
) -> None:
    if impl not in (None, "triton", "chunked", "quadratic", "recurrent"):
        raise InputError(f"impl: expected 'triton', 'chunked', 'quadratic', 'recurrent' or None, was {impl!r}")
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size: expected at least 1, was {chunk_size}")
    if lengths is not None and cu_seqlens is not None:
        raise InputError("lengths: expected None beside cu_seqlens, which has the lengths already")
    if lengths is not None and lengths.shape != q.shape[:1]:
        raise InputError(f"lengths: expected [{q.shape[0]}] as the batch, was {list(lengths.shape)}")
    if lengths is not None and (lengths.is_floating_point() or lengths.dtype == torch.bool):
        raise InputError(f"lengths: expected whole numbers, was {lengths.dtype}")


def _attend_over(
    inputs: Inputs, options: Options, impl: Implementation | None, group: SequenceGroup, *, save_states: bool
) -> PowerAttentionOutput:
    """Attention of this process's share of the tokens."""
    if inputs.cu_seqlens is not None:
        raise InputError("cu_seqlens: expected None where several processes have one sequence")
    if impl not in (None, "triton", "chunked"):
        raise InputError(f"impl: expected 'triton', 'chunked' or None beside a group of processes, was {impl!r}")
    q, k, v = cast_for_autocast(*inputs[:3])
    with without_autocast(q):
        inputs, options = _choose(inputs._replace(q=q, k=k, v=v), options, impl, save_states=save_states)
        return PowerAttentionOutput(*attend_over(inputs, options, group))


def _without_padding(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Zero what is past each row's length: a zero key neither updates a state nor meets a query."""
    inside = torch.arange(q.shape[1], device=q.device) < lengths.to(q.device)[:, None]
    q, k, v = (torch.where(inside[..., None, None], x, 0) for x in (q, k, v))
    return q, k, v, None if log_g is None else torch.where(inside[..., None], log_g, 0)


def _apart_from_padding(inputs: Inputs, lengths: Tensor) -> Inputs:
    """Each row's tokens and its padding as two packed sequences, the latter's state empty.

    With an offset a zero key still has a weight, so that padding has to stand elsewhere.
    """
    B, T = inputs.q.shape[:2]
    starts = T * torch.arange(B, device=inputs.q.device)
    bounds = torch.stack((starts, starts + lengths.to(starts)), 1).flatten()
    q, k, v, log_g = (None if x is None else x.reshape(1, B * T, *x.shape[2:]) for x in inputs[:4])
    S, z = (None if x is None else torch.stack((x, torch.zeros_like(x)), 1).flatten(0, 1) for x in inputs[4:6])
    assert q is not None
    assert k is not None
    assert v is not None
    return Inputs(q, k, v, log_g, S, z, inputs.offset, F.pad(bounds, (0, 1), value=B * T).int())
