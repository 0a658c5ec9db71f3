"""RWKV-7's time mixing for users: checks, padding and resets, and the choice of implementation.

The shape legend: `B` batch, `T` tokens, `H` heads, `N` channels of a head, which are keys' and values' width alike.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zoo.kernels.precision import without_autocast
from zoo.kernels.rwkv7 import op, reference
from zoo.kernels.rwkv7.call import Options, Tokens
from zoo.kernels.rwkv7.checks import check_arguments, check_options, check_values
from zoo.kernels.rwkv7.supported import check_triton, resolve_base, supports_triton
from zoo.kernels.sequence import SequenceGroup, at_the_end, at_the_start, mapped_before
from zoo.kernels.transforms import check_untransformed, transformed

__all__ = ["Implementation", "Rwkv7Output", "rwkv7", "rwkv7_step"]

Implementation = Literal["triton", "chunked", "recurrent"]


class Rwkv7Output(NamedTuple):
    """o `[B, T, H, N]` in the dtype of v, and the state after the last token where it was asked for."""

    o: Tensor
    state: Tensor | None


def rwkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    a: Tensor,
    *,
    state: Tensor | None = None,
    return_state: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    log_w_floor: float = -math.inf,
    chunk_size: int | None = None,
    impl: Implementation | None = None,
    group: SequenceGroup | None = None,
) -> Rwkv7Output:
    """Read a state that forgets by channel, unlearns what it holds for `kappa`, and learns `k -> v`; linear cost in T.

    `S_t = diag(w_t) S_{t-1} - (kappa_t * a_t) (kappa_t^T S_{t-1}) + k_t v_t^T` and `o_t = S_t^T r_t`, a head at a time.
    Splitting a sequence anywhere and passing the state on changes nothing.

    Args:
        r: receptance `[B, T, H, N]`, what is read; float16, bfloat16, float32 or float64, as k, v, kappa and a.
        log_w: log decays `[B, T, H, N]`, float32, at most 0; RWKV-7's own lie in (-0.607, 0).
        k: keys `[B, T, H, N]`.
        v: values `[B, T, H, N]`.
        kappa: removal keys `[B, T, H, N]`, of length 1 (or 0: nothing is removed); the caller normalises them.
        a: removal rates `[B, T, H, N]`, in (0, 1).
        state: S that the past left `[B, H, N, N]`, key channel first, float32 (float64 for float64); None: nothing.
        return_state: also return the state after the last token.
        lengths: int `[B]`, lengths of right-padded sequences: padding gives zero outputs and leaves the state alone.
        resets: bool `[B, T]`: a marked token forgets all before it.
        log_w_floor: what all log decays are known to be at least, but for those of resets; RWKV-7's own are at least
            -0.607. Triton's kernels take half the time where they may divide by decays, and any decays where not.
        chunk_size: tokens a chunk, rounded to a power of two; None: chosen for speed. It changes speed and rounding
            only.
        impl: `"triton"`, `"chunked"` or `"recurrent"`, never replaced silently; None: the fastest for these inputs,
            the Triton kernels on a GPU if they take them: heads of up to 128 channels, all dtypes but float64. Under
            torch.func's transforms and in forward mode it is the recurrence.
        group: processes of which each gives its share of the tokens, all of one length, with its `lengths`, and which
            all call this; None: the tokens are all there are. States, the same on all processes, are those before and
            after all shares. A share is gone over three times: the state before it takes that of the shares before.

    Returns:
        `(o, state)`; state is None unless `return_state`.

    Raises:
        InputError: names the argument, what it was and what it must be, or what `impl` lacks. Values of decays and
            lengths are checked on the CPU outside the compiler.

    Source: Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv 2503.14456.
    """
    check_arguments(r, log_w, k, v, kappa, a, state, tokens=True)
    check_options(r, lengths, resets, log_w_floor, chunk_size, impl)
    check_values(None, lengths, r.shape[1])
    if resets is not None:
        # A token without decay or removal key has nothing to read the past with; products with zero stay exact.
        marked = resets[..., None, None]
        log_w, kappa = log_w.masked_fill(marked, -torch.inf), kappa.masked_fill(marked, 0)
    if lengths is not None:
        # Last, so that a reset in the padding does not count.
        past_end = (torch.arange(r.shape[1], device=r.device) >= lengths.to(r.device)[:, None])[..., None, None]
        r, log_w, k, v, kappa, a = (x.masked_fill(past_end, 0) for x in (r, log_w, k, v, kappa, a))
    check_values(log_w, None, r.shape[1], -math.inf if resets is not None else log_w_floor)
    tokens = Tokens(r, log_w, k, v, kappa, a)
    mix = partial(_mix, impl=impl, chunk_size=chunk_size or 0, log_w_floor=log_w_floor)
    if group is None:
        o, after = mix(tokens, state)
        return Rwkv7Output(o, after if return_state else None)
    first = None if state is None else at_the_start(state, group)
    before = _state_before(tokens, first, mix, group)
    o, after = mix(tokens, before if first is None else before + first)
    return Rwkv7Output(o, at_the_end(after, group) if return_state else None)


def _mix(
    tokens: Tokens, state: Tensor | None, *, impl: Implementation | None, chunk_size: int, log_w_floor: float
) -> tuple[Tensor, Tensor]:
    """The output and the state after it, by the implementation of this name, None for the fastest."""
    r = tokens.r
    if impl in ("triton", "chunked"):
        check_untransformed(impl)
    if impl == "recurrent" or transformed():
        with without_autocast(r):
            return reference.recurrent(*tokens, state)
    if impl == "triton":
        check_triton(r)
    wants_triton = impl == "triton" or (impl is None and supports_triton(r))
    if wants_triton and r.shape[0] > 0 and r.shape[1] > 0:  # there is nothing to launch for no tokens
        wants_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*tokens, state))
        # Here, and not inside the op, where checkpointing would keep the copies with the op's outputs.
        tokens = Tokens(*(x.contiguous() for x in tokens))
        options = Options(True, chunk_size, resolve_base(log_w_floor), wants_gradient)
    else:
        options = Options(False, chunk_size)
    o, after, *_ = op.mix(*tokens, state, *options)
    return o, after


def _state_before(
    tokens: Tokens,
    first: Tensor | None,
    mix: Callable[[Tokens, Tensor | None], tuple[Tensor, Tensor]],
    group: SequenceGroup,
) -> Tensor:
    """S before a later share of the tokens, from what each share does to the state it starts from and to any."""
    _, S = mix(tokens, first)
    nothing = torch.zeros_like(tokens.v)
    unit = torch.eye(S.shape[-1], device=S.device, dtype=S.dtype).expand_as(S).contiguous()
    _, maps = mix(tokens._replace(k=nothing, v=nothing), unit)
    return mapped_before(S, maps, group)


def rwkv7_step(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, *, state: Tensor) -> Tensor:
    """One token of `rwkv7`, in place on the state, so that it can run inside a CUDA graph.

    Args:
        r, log_w, k, v, kappa, a: one token each `[B, H, N]`, as in `rwkv7`.
        state: S `[B, H, N, N]`, float32 (float64 for float64 inputs); overwritten.

    Returns:
        o `[B, H, N]` in the dtype of v. There is no gradient through a step.

    Raises:
        InputError: names the argument, what it was and what it must be.
    """
    check_arguments(r, log_w, k, v, kappa, a, state, tokens=False)
    check_values(log_w, None, 1)
    return op.step(r, log_w, k, v, kappa, a, state)
