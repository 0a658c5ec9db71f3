"""One decoded token beside a journal: what users call, the op, and its form in plain PyTorch."""

import math
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.power.call import Inputs, JournalStep
from zoo.kernels.power.checks import check_arguments, check_values, resolve_offset
from zoo.kernels.power.expansion import expand_by
from zoo.kernels.power.flops import step_flops
from zoo.kernels.power.heads import Heads, spread_heads
from zoo.kernels.power.journal import FORGETS, PowerJournalState, absorb, check_journal, fold_size
from zoo.kernels.power.offset import key_channels, query_channels
from zoo.kernels.power.reference import vanishes
from zoo.kernels.power.step import expansion_tables
from zoo.kernels.registration import count_flops, custom_op, flat, lower_under_autocast
from zoo.kernels.triton_support import TRITON

if TRITON:
    from zoo.kernels.power.triton.journal import supports_triton_journal, triton_journal_step

__all__ = ["journal_step", "power_journal_step", "step_beside_journal"]


def power_journal_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    *,
    state: PowerJournalState,
    position: Tensor,
    p: int = 2,
    scale: float | None = None,
    offset: float | Tensor = 0.0,
    normalize: bool | None = None,
    fold: int | None = None,
) -> Tensor:
    """One token of `power_attention`, in place on a state with a journal, so that it can run inside a CUDA graph.

    The token enters the journal. Where that then holds all the tokens it can, its oldest ones enter the sums. In which
    rows is seen on the device, and nobody waits for it: rows may be anywhere, each by itself.

    Args:
        q, k, v, log_g, p, scale, offset, normalize: as in `power_attention_step`.
        state: see `PowerJournalState`; all of it is written in place.
        position: `[B]` int64, the tokens of a row before this one; none of them is neither in the sums nor apart.
        fold: how many tokens enter the sums at a time; None: what costs least.

    Returns:
        o `[B, Ho, V]` in the dtype of v. There is no gradient through a step.

    Raises:
        InputError: names the argument, what it was and what it must be.
    """
    normalize = p % 2 == 0 if normalize is None else normalize
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    offsets = resolve_offset(offset, q, scale) if q.dim() == 3 else None
    check_arguments(Inputs(q, k, v, log_g, *state.sums, offsets), p=p, normalize=normalize, tokens=False)
    fold = fold_size(state.S.shape[2]) if fold is None else fold
    check_journal(state, k, v, position, fold)
    check_values(log_g, None, None, 1)
    call = JournalStep(q, k, v, log_g, *state, position, offsets, p=p, scale=scale, normalize=normalize, fold=fold)
    return journal_step(*call)


@custom_op("power_attention_journal_step", mutates=("S", "z", "keys", "values", "gates", "folded"))
def journal_step(step: JournalStep) -> Tensor:
    """One token: o `[B, Ho, V]` in the dtype of v."""
    return triton_journal_step(step) if TRITON and supports_triton_journal(step) else step_beside_journal(step)


def _fake(step: JournalStep) -> Tensor:
    return step.v.new_empty(step.v.shape[0], step.heads.output, step.v.shape[2])


journal_step.register_fake(flat(_fake))
lower_under_autocast("power_attention_journal_step", journal_step)


@count_flops("power_attention_journal_step")
def _(step: JournalStep) -> int:
    """What the state costs, and a journal that is half full."""
    shapes: Any = step
    (B, Hq, K), (_, Hk, _), (_, Hv, V), (_, L, *_) = shapes.q, shapes.k, shapes.v, shapes.keys
    heads = Heads(Hq, Hk, Hv)
    return step_flops(B, heads, K, V, step.p, offset=step.offset is not None, pairs=(L + 1) // 2)


def step_beside_journal(step: JournalStep) -> Tensor:
    """Append the token, read sums and journal, and fold what is due: o `[B, Ho, V]`."""
    q, k, v, log_g, S, z, keys, values, gates, folded, position, offset, p, scale, normalize, _ = step
    heads, dtype, L, device = step.heads, S.dtype, keys.shape[1], S.device
    row, slots = torch.arange(len(q), device=device), torch.arange(L, device=device)
    total = gates[row, (position - 1) % L]  # [B, Hv]
    if log_g is not None:
        total = total + log_g.double().clamp(min=FORGETS)
    slot, after = position % L, position + 1
    keys[row, slot], values[row, slot], gates[row, slot] = k.to(keys.dtype), v.to(values.dtype), total

    apart = (slots - folded[:, None]) % L < (after - folded)[:, None]  # [B, L]
    decay = torch.where(apart[..., None], total[:, None] - gates, -torch.inf).exp().to(dtype)  # [B, L, Hv]
    queries = spread_heads(query_channels(q.to(dtype) * scale, offset), heads.output, 1)  # [B, Ho, K]
    scores = torch.einsum("bhk,blhk->blh", queries, spread_heads(key_channels(keys.to(dtype), offset), heads.output, 2))
    weights = scores**p * spread_heads(decay, heads.output, 2)
    o = torch.einsum("blh,blhv->bhv", weights, spread_heads(values.to(dtype), heads.output, 2))
    denominator = weights.sum(1)[..., None]  # [B, Ho, 1]

    looks = _can_look(S)
    if not looks or bool((folded > 0).any()):
        tables, c = expansion_tables(queries.shape[-1], p, dtype, device)
        read = (c * expand_by(queries, tables)).unflatten(1, (heads.state, -1))  # [B, Hs, R, D]
        kept = (total - gates[row, (folded - 1) % L]).exp().to(dtype)
        kept = spread_heads(kept, heads.output, 1)[..., None]  # [B, Ho, 1]
        o = o + kept * torch.einsum("bhrd,bhdv->bhrv", read, S).flatten(1, 2)
        denominator = denominator + kept * torch.einsum("bhrd,bhd->bhr", read, z).flatten(1, 2)[..., None]
    if normalize:
        o = torch.where(vanishes(denominator), 0, o / denominator)

    due = after - folded >= L - 1
    if not looks:
        _fold_oldest(step, due)
    elif bool(due.any()):
        _fold_rows(step, due.nonzero()[:, 0])
    return o.to(v.dtype)


def _can_look(x: Tensor) -> bool:
    """Whether values may decide what is done: elsewhere looking at them makes the device wait."""
    return x.device.type == "cpu"


def _fold_rows(step: JournalStep, rows: Tensor) -> None:
    """Have the oldest `fold` tokens of these rows enter their sums."""
    state = PowerJournalState(*(x[rows] for x in step[4:10]))
    until = state.folded + step.fold
    S, z = absorb(state, until, step.fold, p=step.p)
    step.S[rows], step.z[rows], step.folded[rows] = S, z, until


def _fold_oldest(step: JournalStep, due: Tensor) -> None:
    """Have the oldest token of rows where it is `due [B]` enter the sums, one at a time, since all rows pay for it."""
    S, z, keys, values, gates, folded = step[4:10]
    row, slot = torch.arange(len(folded), device=S.device), folded % keys.shape[1]
    decay = (gates[row, slot] - gates[row, slot - 1]).exp().to(S.dtype)
    decay = spread_heads(torch.where(due[:, None], decay, 1), S.shape[1], 1)[..., None]  # [B, Hs, 1]
    key = key_channels(torch.where(due[:, None, None], keys[row, slot].to(S.dtype), 0), step.offset)
    tables, _ = expansion_tables(key.shape[-1], step.p, S.dtype, S.device)
    monomials = torch.where(due[:, None, None], expand_by(key, tables), 0)
    monomials = spread_heads(monomials, S.shape[1], 1)
    value = spread_heads(values[row, slot].to(S.dtype), S.shape[1], 1)
    S.mul_(decay[..., None]).addcmul_(monomials[..., None], value[..., None, :])
    z.mul_(decay).add_(monomials)
    folded.add_(due)
