"""Tokens of a sequence beside a journal: what users call, and its ops."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.power.api import power_attention
from zoo.kernels.power.call import Fold, Inputs, JournalBlock
from zoo.kernels.power.checks import check_arguments, resolve_offset
from zoo.kernels.power.journal import FORGETS, PowerJournalState, absorb, check_journal, due, fold_size
from zoo.kernels.power.journal_read import can_look, held, read_journal
from zoo.kernels.power.state import PowerState
from zoo.kernels.precision import cast_for_autocast, without_autocast
from zoo.kernels.registration import custom_op, flat
from zoo.kernels.triton_support import TRITON

if TRITON:
    from zoo.kernels.power.triton.journal import supports_triton_fold, triton_fold

__all__ = ["power_journal_attention"]


def power_journal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    *,
    state: PowerJournalState,
    position: Tensor,
    lengths: Tensor | None = None,
    p: int = 2,
    scale: float | None = None,
    offset: float | Tensor = 0.0,
    normalize: bool | None = None,
    fold: int | None = None,
    keep: int = 0,
) -> tuple[Tensor, PowerJournalState]:
    """`power_attention` that goes on from a state with a journal, and returns one; changes no argument.

    Rows that are still short stay in their journal whole. Of others all tokens but the last `keep` are summed up. As
    many tokens as can be taken back, `keep` and the one before them, stay apart all of them, and are read as a step
    reads its own: with them one forward pass checks what was guessed.

    Args:
        q, k, v, log_g, lengths, p, scale, offset, normalize: as in `power_attention`.
        state: see `PowerJournalState`.
        position: `[B]` int64, the tokens of a row before these; none of them is neither in the sums nor apart.
        fold, keep: as in `power_journal_step`.

    Returns:
        o `[B, T, Ho, V]` in the dtype of v, and the state.

    Raises:
        InputError: names the argument, what it was and what it must be.
    """
    normalize = p % 2 == 0 if normalize is None else normalize
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    fold = fold_size(state.S.shape[2]) if fold is None else fold
    check_journal(state, k, v, position, fold=fold, keep=keep)
    q, k, v = cast_for_autocast(q, k, v)
    after = position + (q.shape[1] if lengths is None else lengths)
    options: dict[str, Any] = {"p": p, "scale": scale, "normalize": normalize}
    with without_autocast(q):
        offsets = resolve_offset(offset, q, scale)
        inputs = Inputs(q, k, v, log_g, *state.sums, offsets)
        check_arguments(inputs, p=p, normalize=normalize, tokens=True)
        total = _totals(state, position, log_g, k.shape[1])
        written = _append(state, k, v, total, position, after)
        if q.shape[1] <= keep + 1 and not torch.is_grad_enabled():
            until = due(after, state.slots, fold, keep)
            until = torch.minimum(torch.maximum(until, state.folded), position)
            written = PowerJournalState(*_sums(state, until, p), *written[2:5], until)
            o = journal_block(*JournalBlock(q, total, *written, position, after, offsets, **options))
            return o.to(v.dtype), written
        read = partial(power_attention, q, k, v, log_g, offset=offset, return_state=True, **options)
        o, sums = read(state=_sums(state, position, p), lengths=lengths)
        long = after >= state.slots - 1
        until = torch.where(long, torch.maximum(after - keep, state.folded), state.folded)
        if keep:
            before = _sums(state, torch.minimum(until, position), p)
            _, sums = read(state=before, lengths=(until - position).clamp(min=0))
        assert sums is not None
        S, z = (
            torch.where(long.view(-1, *[1] * (x.dim() - 1)), x, old) for x, old in zip(sums, state[:2], strict=True)
        )
        return o, PowerJournalState(S, z, *written[2:5], until)  # torch 2.11 compiles no `_replace` that is returned


def _totals(state: PowerJournalState, position: Tensor, log_g: Tensor | None, tokens: int) -> Tensor:
    """Log gates summed up to each token from `position` on, `[B, T, Hv]` float64; added one by one as steps do."""
    last = state.gates[torch.arange(len(position), device=position.device), (position - 1) % state.slots][:, None]
    if log_g is None:
        return last.expand(-1, tokens, -1)
    return torch.cat((last, log_g.double().clamp(min=FORGETS)), 1).cumsum(1)[:, 1:]


def _append(
    state: PowerJournalState, k: Tensor, v: Tensor, total: Tensor, position: Tensor, after: Tensor
) -> PowerJournalState:
    """The journal with tokens from `position [B]` up to `after [B]`, the last ones if it has not slots for all."""
    new = held(after, state.slots) - position[:, None]
    old = torch.arange(state.slots, device=k.device)
    source, row = torch.where(new >= 0, state.slots + new, old), torch.arange(len(k), device=k.device)[:, None]
    pairs = (state.keys, k), (state.values, v), (state.gates, total)
    parts = (torch.cat((ring, x.to(ring.dtype)), 1)[row, source] for ring, x in pairs)
    return PowerJournalState(*(*state.sums, *parts, state.folded))


def _sums(state: PowerJournalState, until: Tensor, p: int) -> PowerState:
    """The sums over a row's first `until [B]` tokens, of which those that are apart may be any."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in state):
        return absorb(state, until, state.slots - 1, p=p)
    return PowerState(*journal_fold(*Fold(*state, until, p)))


@custom_op("power_attention_journal_block")
def journal_block(block: JournalBlock) -> Tensor:
    """See `read_journal`; opaque, since it looks at values where that costs nothing."""
    return read_journal(block)


def _fake_block(block: JournalBlock) -> Tensor:
    return block.S.new_empty(*block.q.shape[:2], block.heads.output, block.S.shape[-1])


journal_block.register_fake(flat(_fake_block))


@custom_op("power_attention_journal_fold")
def journal_fold(fold: Fold) -> tuple[Tensor, Tensor]:
    """S and z with the tokens from `folded` up to `until`."""
    *parts, until, p = fold
    state = PowerJournalState(*parts)
    if TRITON and supports_triton_fold(fold):
        return triton_fold(fold)
    most = state.slots - 1
    if can_look(until):
        most = int((until - state.folded).amax()) if len(until) else 0
        if most <= 0:
            return state.S.clone(), state.z.clone()
    S, z = absorb(state, until, most, p=p)
    return S, z


def _fake_fold(fold: Fold) -> tuple[Tensor, Tensor]:
    return torch.empty_like(fold.S), torch.empty_like(fold.z)


journal_fold.register_fake(flat(_fake_fold))
