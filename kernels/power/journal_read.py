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
    heads, dtype, place = block.heads, S.dtype, held(after, keys.shape[1])
    at = position[:, None] + torch.arange(q.shape[1], device=q.device)
    apart = (place >= folded[:, None])[:, None] & (place[:, None] <= at[..., None])  # [B, T, L]
    decay = torch.where(apart[..., None], total[:, :, None] - gates[:, None], -torch.inf).exp().to(dtype)  # Hv of each
    queries = spread_heads(query_channels(q.to(dtype) * scale, offset), heads.output, 2)  # [B, T, Ho, K]
    scores = torch.einsum(
        "bthk,blhk->btlh", queries, spread_heads(key_channels(keys.to(dtype), offset), heads.output, 2)
    )
    weights = scores**p * spread_heads(decay, heads.output, 3)
    o = torch.einsum("btlh,blhv->bthv", weights, spread_heads(values.to(dtype), heads.output, 2))
    denominator = weights.sum(2)[..., None]  # [B, T, Ho, 1]

    if not can_look(S) or bool((folded > 0).any()):
        tables, c = expansion_tables(queries.shape[-1], p, dtype, S.device)
        read = (c * expand_by(queries, tables)).unflatten(2, (heads.state, -1))  # [B, T, Hs, R, D]
        row = torch.arange(len(q), device=q.device)
        kept = (total - gates[row, (folded - 1) % keys.shape[1]][:, None]).exp().to(dtype)
        kept = spread_heads(kept, heads.output, 2)[..., None]  # [B, T, Ho, 1]
        o = o + kept * torch.einsum("bthrd,bhdv->bthrv", read, S).flatten(2, 3)
        denominator = denominator + kept * torch.einsum("bthrd,bhd->bthr", read, z).flatten(2, 3)[..., None]
    return torch.where(vanishes(denominator), 0, o / denominator) if normalize else o
