"""What tokens read of a journal and of the sums before it, in plain PyTorch."""

import torch
from torch import Tensor

from zoo.kernels.power.call import JournalBlock
from zoo.kernels.power.expansion import expand_by
from zoo.kernels.power.heads import spread_heads
from zoo.kernels.power.offset import key_channels, query_channels
from zoo.kernels.power.reference import vanishes
from zoo.kernels.power.step import expansion_tables

__all__ = ["can_look", "held", "read_journal"]


def can_look(x: Tensor) -> bool:
    """Whether values may decide what is done: elsewhere looking at them makes the device wait."""
    return x.device.type == "cpu"


def held(after: Tensor, slots: int) -> Tensor:
    """Return the position of the token in each slot after `after [B]` tokens, `[B, L]`; negative: there is none."""
    last = after[:, None] - 1
    return last - (last - torch.arange(slots, device=after.device)) % slots


def read_journal(block: JournalBlock) -> Tensor:
    """Return o `[B, T, Ho, V]` of tokens that are in the journal themselves, in the state's dtype."""
    q, total, S, z, keys, values, gates, folded, position, after, offset, p, scale, normalize = block
    heads, dtype, row = block.heads, S.dtype, torch.arange(len(q), device=q.device)[:, None]
    most, folds = keys.shape[1], not can_look(S) or bool((folded > 0).any())
    if can_look(S) and len(q):
        most = min(most, max(0, int((after - folded).amax())))
    place = folded[:, None] + torch.arange(most, device=q.device)  # [B, N], of the tokens that are apart, and others
    last = torch.minimum(position[:, None] + torch.arange(q.shape[1], device=q.device), after[:, None] - 1)
    apart, slot = place[:, None] <= last[..., None], place % keys.shape[1]
    # Of a ring that has not gone round no copy is made.
    keys, values, sums = (x[row, slot] if folds else x[:, :most] for x in (keys, values, gates))
    keys, values = keys.to(dtype), values.to(dtype)
    decay = total[:, :, None] - sums[:, None]  # [B, T, N, Hv]
    decay = torch.where(apart[..., None], decay, -torch.inf).exp().to(dtype)
    queries = spread_heads(query_channels(q.to(dtype) * scale, offset), heads.output, 2)  # [B, T, Ho, K]
    keys = spread_heads(key_channels(keys, offset), heads.output, 2)
    alone = q.shape[1] == 1  # for which a contraction would put all keys in another order first
    scores = (queries * keys).sum(-1)[:, None] if alone else torch.einsum("bthk,bnhk->btnh", queries, keys)
    weights = scores**p * spread_heads(decay, heads.output, 3)
    o = torch.einsum("btnh,bnhv->bthv", weights, spread_heads(values, heads.output, 2))
    denominator = weights.sum(2)[..., None]  # [B, T, Ho, 1]

    if folds:
        tables, c = expansion_tables(queries.shape[-1], p, dtype, S.device)
        read = (c * expand_by(queries, tables)).unflatten(2, (heads.state, -1))  # [B, T, Hs, R, D]
        kept = (total - gates[row, (folded[:, None] - 1) % gates.shape[1]]).exp().to(dtype)
        kept = spread_heads(kept, heads.output, 2)[..., None]  # [B, T, Ho, 1]
        o = o + kept * torch.einsum("bthrd,bhdv->bthrv", read, S).flatten(2, 3)
        denominator = denominator + kept * torch.einsum("bthrd,bhd->bthr", read, z).flatten(2, 3)[..., None]
    return torch.where(vanishes(denominator), 0, o / denominator) if normalize else o
