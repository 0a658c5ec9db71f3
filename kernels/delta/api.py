"""The delta rule for users: defaults, checks, padding and resets, and the choice of implementation.

The shape legend: `B` batch, `T` tokens, `Hq`, `Hk`, `Hv` query, key and value heads, `K` key dim, `V` value dim,
`D = C(K + p - 1, p)` state rows, which are the key's channels for p = 1.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zoo.kernels.delta import op, reference
from zoo.kernels.delta.call import Inputs, Options, Step
from zoo.kernels.delta.checks import check_call, check_options, check_rates
from zoo.kernels.delta.supported import check_triton, supports_triton
from zoo.kernels.errors import InputError
from zoo.kernels.power.checks import check_values
from zoo.kernels.precision import autocast_dtype
from zoo.kernels.sequence import SequenceGroup, at_the_end, at_the_start, mapped_before, states_before
from zoo.kernels.transforms import check_untransformed, transformed

__all__ = ["DeltaAttentionOutput", "Implementation", "delta_attention", "delta_attention_step"]

Implementation = Literal["triton", "chunked", "recurrent"]


class DeltaAttentionOutput(NamedTuple):
    """o `[B, T, Hv, V]` in the dtype of v, and the state after the last token where it was asked for."""

    o: Tensor
    state: Tensor | None


def delta_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    p: int = 1,
    scale: float | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    chunk_size: int | None = None,
    impl: Implementation | None = None,
    group: SequenceGroup | None = None,
) -> DeltaAttentionOutput:
    """Read a state that decays, and that is corrected at each key by `beta` times the error it makes there.

    `S_t = S' + beta_t k_t (v_t - S'^T k_t)^T` with `S' = exp(log_g_t) S_{t-1}`, and `o_t = S_t^T (scale q_t)`, a head
    at a time, at linear cost in T; without beta `S_t = S' + k_t v_t^T`. Where `p > 1`, k and q stand for their
    monomials of degree p, so that `(q . k)^p` takes the place of `q . k`. Splitting a sequence anywhere and passing the
    state on changes nothing.

    | mixer | log_g | beta |
    |---|---|---|
    | GLA, HGRN2 | a channel | None |
    | DeltaNet | None | a head |
    | Gated DeltaNet | a head | a head |
    | Kimi Delta Attention | a channel | a head |

    Args:
        q: queries `[B, T, Hq, K]`, float16, bfloat16, float32 or float64.
        k: keys `[B, T, Hk, K]`; of unit length (or shorter), if there is a beta: what is longer may be corrected by
            more than its error, and grow. The caller normalises them.
        v: values `[B, T, Hv, V]`. Each value head has a state; Hq and Hk divide Hv, and queries and keys are shared by
            consecutive groups of value heads. Nothing needs to be repeated beforehand.
        log_g: log gates, float32, at most 0: a head `[B, T, Hv]`, or (for `p = 1`) a key channel `[B, T, Hv, K]`;
            `-inf` forgets all before that token. None: no gates.
        beta: rates of writing `[B, T, Hv]`, from 0 (nothing) over 1 (all that was held for the key) to 2 (the negative
            of it); any floating dtype. None: values are added, and nothing is corrected.
        p: the power, from 1 on; it sets the state's size D.
        scale: factor on `q . k`; None: `1 / sqrt(K)`.
        state: S that the past left `[B, Hv, D, V]`, float32 (float64 for float64); None: nothing.
        return_state: also return the state after the last token.
        cu_seqlens: int32 `[n + 1]`, boundaries of n sequences packed into B = 1; the state's batch is then n.
        lengths: int `[B]`, lengths of right-padded sequences: padding gives zero outputs and never enters the state.
        resets: bool `[B, T]`: a marked token forgets all before it.
        chunk_size: tokens a chunk; None: chosen for speed. It changes speed and rounding only.
        impl: `"triton"`, `"chunked"` or `"recurrent"`, never replaced silently; None: the fastest for the device, the
            Triton kernels on a GPU if they take the inputs, and under torch.func's transforms and in forward mode the
            recurrence.
        group: processes of which each gives its share of the tokens, all of one length, with its `lengths`, and which
            all call this; None: the tokens are all there are. States, the same on all processes, are those before and
            after all shares; there is no `cu_seqlens`. A share is gone over twice, and with a beta three times: the
            state before it takes that of the shares before.

    Returns:
        `(o, state)`; state is None unless `return_state`.

    Raises:
        InputError: names the argument, what it was and what it must be. Values of gates, rates and lengths are checked
            on the CPU outside the compiler, and elsewhere under `zoo.debug_checks()`.

    Sources: Yang et al., arXiv 2406.06484 (the delta rule in chunks), arXiv 2412.06464 (gated); Kimi Team, arXiv
    2510.26692 (a gate a channel); Yang et al., arXiv 2312.06635 (gated linear attention).
    """
    inputs = Inputs(q, k, v, log_g, beta, state, cu_seqlens)
    check_call(inputs, p)
    check_options(inputs, lengths, resets, chunk_size, impl)
    check_values(None, cu_seqlens, lengths, q.shape[1])
    inputs = _without_padding(_with_resets(inputs, resets), lengths)  # in this order: resets in the padding are none
    check_values(inputs.log_g, None, None, q.shape[1])
    check_rates(inputs.beta)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    options = Options(p, scale, chunk_size or 0, return_state)
    if group is not None:
        if cu_seqlens is not None:
            raise InputError("cu_seqlens: expected None where several processes have one sequence")
        return _attend_over(inputs, options, impl, group)
    return _attend(inputs, options, impl)


def _attend(inputs: Inputs, options: Options, impl: Implementation | None) -> DeltaAttentionOutput:
    """Attention by the implementation of this name, None for the fastest."""
    (q, *_), p, return_state = inputs, options.p, options.return_state
    wants_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    options = options._replace(save_errors=wants_gradient)
    if impl in ("triton", "chunked"):
        check_untransformed(impl)
    if impl == "recurrent" or transformed():
        outputs = reference.run_reference(inputs, options)
        return DeltaAttentionOutput(outputs.o, outputs.S if return_state else None)
    dtype = autocast_dtype(q)
    if impl == "triton":
        check_triton(inputs, p, dtype)
    wants_triton = impl == "triton" or (impl is None and supports_triton(inputs, p, dtype))
    if wants_triton and q.shape[0] > 0 and q.shape[1] > 0:  # there is nothing to launch for no tokens
        # Here, and not inside the op, where checkpointing would keep the copies with the op's outputs.
        inputs = inputs._replace(q=inputs.q.contiguous(), k=inputs.k.contiguous(), v=inputs.v.contiguous())
        options = options._replace(use_triton=True)
    o, S, *_ = op.attend(*inputs, *options)
    return DeltaAttentionOutput(o, S if return_state else None)


def _attend_over(
    inputs: Inputs, options: Options, impl: Implementation | None, group: SequenceGroup
) -> DeltaAttentionOutput:
    """Attention of this process's share of the tokens."""
    if inputs.S is not None:
        inputs = inputs._replace(S=at_the_start(inputs.S, group))
    before = _state_before(inputs, options, impl, group)
    before = before if inputs.S is None else before + inputs.S
    o, after = _attend(inputs._replace(S=before), options, impl)
    return DeltaAttentionOutput(o, None if after is None else at_the_end(after, group))


def _state_before(inputs: Inputs, options: Options, impl: Implementation | None, group: SequenceGroup) -> Tensor:
    """S before a later share of the tokens, from what each share does to the state it starts from and to any."""
    options = options._replace(return_state=True)
    S, log_g = _attend(inputs, options, impl).state, inputs.log_g
    assert S is not None
    if inputs.beta is not None:
        (B, H, D, _), v = S.shape, inputs.v
        unit = torch.eye(D, device=S.device, dtype=S.dtype).expand(B, H, D, D).contiguous()
        maps = _attend(inputs._replace(v=v.new_zeros(*v.shape[:-1], D), S=unit), options, impl).state
        assert maps is not None
        return mapped_before(S, maps, group)
    log_decays = None if log_g is None else log_g.sum(1, dtype=torch.float64)
    if log_decays is None or log_decays.dim() == 2:
        return states_before(S.flatten(2), log_decays, group).view_as(S)
    return states_before(S.flatten(1, 2), log_decays.flatten(1), group).view_as(S)


def delta_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    state: Tensor,
    p: int = 1,
    scale: float | None = None,
) -> Tensor:
    """One token of `delta_attention`, in place on the state, so that it can run inside a CUDA graph.

    Args:
        q: query `[B, Hq, K]`; k: key `[B, Hk, K]`; v: value `[B, Hv, V]`; log_g: log gate `[B, Hv]` or `[B, Hv, K]`,
            float32, or None; beta: rate of writing `[B, Hv]`, or None.
        state: S `[B, Hv, D, V]`, float32 (float64 for float64 inputs); overwritten.
        p, scale: as in `delta_attention`.

    Returns:
        o `[B, Hv, V]` in the dtype of v. There is no gradient through a step.

    Raises:
        InputError: names the argument, what it was and what it must be.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    call = Step(q, k, v, log_g, beta, state, p, scale)
    check_call(call, p)
    check_values(log_g, None, None, 1)
    check_rates(beta)
    return op.step(*call)


def _without_padding(inputs: Inputs, lengths: Tensor | None) -> Inputs:
    """Zero what is past each row's length: a zero key neither updates a state nor corrects it."""
    if lengths is None:
        return inputs
    B, T = inputs.q.shape[:2]
    inside = torch.arange(T, device=inputs.q.device) < lengths.to(inputs.q.device)[:, None]
    *by_token, S, cu_seqlens = inputs
    kept = (None if x is None else torch.where(inside.view(B, T, *[1] * (x.dim() - 2)), x, 0) for x in by_token)
    return Inputs._make((*kept, S, cu_seqlens))


def _with_resets(inputs: Inputs, resets: Tensor | None) -> Inputs:
    """Forget all at marked tokens, by gates of `-inf`."""
    if resets is None:
        return inputs
    v, log_g = inputs.v, inputs.log_g
    log_g = v.new_zeros(v.shape[:-1], dtype=inputs.accumulation) if log_g is None else log_g
    marks = resets.view(*resets.shape, *[1] * (log_g.dim() - 2))
    return inputs._replace(log_g=log_g.masked_fill(marks, -torch.inf))
