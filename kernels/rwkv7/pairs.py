"""What the tokens of a chunk read of one another: products of vectors with a decay for each pair and channel.

A chunk of C tokens is halved, its halves are halved, and so on down to single tokens. Every pair of tokens is parted by
exactly one of these cuts, and its decay is the product of two: from the writer to the cut, and from the cut to the
reader. Both are products of decays, at most 1, so that nothing overflows whatever the decays are, nothing that matters
underflows, a decay of zero is nothing special, and every halving is a batch of matrix products. Rounding is that of the
recurrence, which multiplies the same decays one after another.

Shapes: `m` chunks (of all heads and sequences), `C` tokens, a power of two, `N` channels, `s` tokens in a half and
`P = C / (2 s)` cuts at a level. Of every token there are two readers, kappa and r, and two writers, so that readers and
writers are `[m, C, 2, N]` and their scores `[m, 2 C, 2 C]`. kappa reads the state before its token decays it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Pairs", "differentiate_pairs", "meet"]


class _Level(NamedTuple):
    """The pairs that the cuts of one level part: readers right of a cut, writers left of it."""

    reads: Tensor  # readers times their decay since the cut [m, P, 2 s, N]
    writes: Tensor  # writers times their decay until the cut [m, P, 2 s, N]
    since: Tensor  # [m, P, s, 2, N]
    until: Tensor  # [m, P, s, 1, N]


class Pairs(NamedTuple):
    """A chunk's scores and decays."""

    scores: Tensor  # [m, 2 C, 2 C], zero where the reader does not see the writer
    since_start: Tensor  # decay from the chunk's start to each reader [m, C, 2, N]
    to_end: Tensor  # decay from each token to the chunk's end [m, C, 1, N]
    levels: list[_Level]


def _parted(scores: Tensor, s: int) -> Tensor:
    """The part of `scores` that belongs to the cuts between halves of `s` tokens, a view `[m, P, 2 s, 2 s]`."""
    cuts = scores.shape[1] // (4 * s)
    blocks = scores.view(-1, cuts, 2, 2 * s, cuts, 2, 2 * s).diagonal(0, 1, 4)
    return blocks[:, 1, :, 0].permute(0, 3, 1, 2)


def _own(scores: Tensor) -> Tensor:
    """The part of `scores` in which r meets its own token's writers, a view `[m, C, 2]`."""
    C = scores.shape[1] // 2
    return scores.view(-1, C, 2, C, 2).diagonal(0, 1, 3)[:, 1].mT


def meet(readers: Tensor, writers: Tensor, w: Tensor) -> Pairs:
    """Scores of all pairs, from readers and writers `[m, C, 2, N]` and decays w `[m, C, N]`."""
    m, C, _, N = readers.shape
    scores = readers.new_zeros(m, 2 * C, 2 * C)
    _own(scores).copy_((readers[:, :, 1:] * writers).sum(-1))
    since_start, to_end = torch.stack((torch.ones_like(w), w), 2), torch.ones_like(w).unsqueeze(2)
    levels = []
    s = 1
    while s < C:
        # Until here both reach only to the ends of each half.
        since_halves, to_halves = since_start.view(m, -1, 2, s, 2, N), to_end.view(m, -1, 2, s, 1, N)
        since, until = since_halves[:, :, 1].clone(), to_halves[:, :, 0].clone()
        reads = (readers.view(m, -1, 2, s, 2, N)[:, :, 1] * since).flatten(2, 3)
        writes = (writers.view(m, -1, 2, s, 2, N)[:, :, 0] * until).flatten(2, 3)
        _parted(scores, s).copy_(reads @ writes.mT)
        levels.append(_Level(reads, writes, since, until))
        left, right = since_halves[:, :, :, -1:, 1:].clone().unbind(2)  # decays of whole halves [m, P, 1, 1, N]
        since_halves[:, :, 1] *= left
        to_halves[:, :, 0] *= right
        s *= 2
    return Pairs(scores, since_start, to_end, levels)


def differentiate_pairs(
    dscores: Tensor, dreads: Tensor, dwrites: Tensor, dwhole: Tensor, readers: Tensor, writers: Tensor, pairs: Pairs
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of readers and writers `[m, C, 2, N]`, and of the log decays `[m, C, N]`.

    Args:
        dscores: of the scores `[m, 2 C, 2 C]`; what it says of pairs that do not see one another is ignored.
        dreads: of `readers * since_start` `[m, C, 2, N]`.
        dwrites: of `writers * to_end` `[m, C, 2, N]`.
        dwhole: of the logarithm of the whole chunk's decay `[m, N]`.

    A decay's gradient is carried as that of its logarithm, which is finite for a decay of zero and needs no division;
    it goes back down the halvings, so that sums over tokens are sums over a half.
    """
    m, N = dwhole.shape
    dreaders, dwriters = dreads * pairs.since_start, dwrites * pairs.to_end
    dsince, dto = dreaders * readers, dwriters * writers
    dsince[:, -1, 1] += dwhole
    own = _own(dscores).unsqueeze(-1)
    dreaders[:, :, 1] += (own * writers).sum(2)
    dwriters += own * readers[:, :, 1:]
    for level in reversed(pairs.levels):
        s = level.since.shape[2]
        dsince_halves, dto_halves = dsince.view(m, -1, 2, s, 2, N), dto.view(m, -1, 2, s, 2, N)
        dleft, dright = dsince_halves[:, :, 1].sum((2, 3)), dto_halves[:, :, 0].sum((2, 3))
        dsince_halves[:, :, 0, -1, 1] += dleft
        dsince_halves[:, :, 1, -1, 1] += dright
        met = _parted(dscores, s)
        dreads, dwrites = met @ level.writes, met.mT @ level.reads
        dsince_halves[:, :, 1] += (dreads * level.reads).view(m, -1, s, 2, N)
        dto_halves[:, :, 0] += (dwrites * level.writes).view(m, -1, s, 2, N)
        dreaders.view(m, -1, 2, s, 2, N)[:, :, 1] += dreads.view(m, -1, s, 2, N) * level.since
        dwriters.view(m, -1, 2, s, 2, N)[:, :, 0] += dwrites.view(m, -1, s, 2, N) * level.until
    return dreaders, dwriters, dsince[:, :, 1]
