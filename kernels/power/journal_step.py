"""One decoded token beside a journal: what users call, the op, and its form in plain PyTorch."""

import math
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.power.call import Inputs, JournalBlock, JournalStep
from zoo.kernels.power.checks import check_arguments, check_values, resolve_offset
from zoo.kernels.power.expansion import expand_by
from zoo.kernels.power.flops import step_flops
from zoo.kernels.power.heads import Heads, spread_heads
from zoo.kernels.power.journal import FORGETS, PowerJournalState, absorb, check_journal, due, fold_size
from zoo.kernels.power.journal_read import can_look, read_journal
from zoo.kernels.power.offset import key_channels
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
    keep: int = 0,
) -> Tensor:
    """One token of `power_attention`, in place on a state with a journal, so that it can run inside a CUDA graph.

    The token enters the journal. Then those that are due enter the sums (see `due`). In which rows there are any is
    seen on the device, and nobody waits for it: rows may be anywhere, each by itself.

    Args:
        q, k, v, log_g, p, scale, offset, normalize: as in `power_attention_step`.
        state: see `PowerJournalState`; all of it is written in place.
        position: `[B]` int64, the tokens of a row before this one; none of them is neither in the sums nor apart.
        fold: how many tokens enter the sums at a time; None: what costs least.
        keep: how many stay apart at least, once there are so many.

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
    check_journal(state, k, v, position, fold=fold, keep=keep)
    check_values(log_g, None, None, 1)
    call = (q, k, v, log_g, *state, position, offsets, p, scale, normalize, fold, keep)
    return journal_step(*JournalStep(*call))


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
    q, k, v, log_g, _, _, keys, values, gates, folded, position, offset, p, scale, normalize, fold, keep = step
    row, L = torch.arange(len(q), device=q.device), keys.shape[1]
    total = gates[row, (position - 1) % L]  # [B, Hv]
    if log_g is not None:
        total = total + log_g.double().clamp(min=FORGETS)
    slot, after = position % L, position + 1
    keys[row, slot], values[row, slot], gates[row, slot] = k.to(keys.dtype), v.to(values.dtype), total

    block = (q[:, None], total[:, None], *step[4:10], position, after, offset, p, scale, normalize)
    o = read_journal(JournalBlock(*block))

    until = due(after, L, fold, keep)
    if not can_look(q):
        _fold_oldest(step, until > folded)
    elif bool((until > folded).any()):
        _fold_rows(step, until)
    return o[:, 0].to(v.dtype)


def _fold_rows(step: JournalStep, until: Tensor) -> None:
    """Have the tokens before `until [B]` enter the sums of rows where they have not."""
    rows = (until > step.folded).nonzero()[:, 0]
    state, until = PowerJournalState(*(x[rows] for x in step[4:10])), until[rows]
    most = int((until - state.folded).amax())
    step.S[rows], step.z[rows] = absorb(state, until, most, p=step.p)
    step.folded[rows] = until


def _fold_oldest(step: JournalStep, enters: Tensor) -> None:
    """Have the oldest token of rows where it `enters [B]` join the sums, one at a time, since all rows pay for it."""
    S, z, keys, values, gates, folded = step[4:10]
    row, slot = torch.arange(len(folded), device=S.device), folded % keys.shape[1]
    decay = (gates[row, slot] - gates[row, slot - 1]).exp().to(S.dtype)
    decay = spread_heads(torch.where(enters[:, None], decay, 1), S.shape[1], 1)[..., None]  # [B, Hs, 1]
    key = key_channels(torch.where(enters[:, None, None], keys[row, slot].to(S.dtype), 0), step.offset)
    tables, _ = expansion_tables(key.shape[-1], step.p, S.dtype, S.device)
    monomials = torch.where(enters[:, None, None], expand_by(key, tables), 0)
    monomials = spread_heads(monomials, S.shape[1], 1)
    value = spread_heads(values[row, slot].to(S.dtype), S.shape[1], 1)
    S.mul_(decay[..., None]).addcmul_(monomials[..., None], value[..., None, :])
    z.mul_(decay).add_(monomials)
    folded.add_(enters)
