"""Decays within a chunk, and what its tokens read of one another: one gate a head, or one a key channel.

Readers are vectors that look back, keys are what was written: `scores[j, r, i]` is `exp(G_i - G_j) (reader_ri . k_j)^p`
for j <= i, where `G` sums the log gates, and zero for later keys. Channel gates stand inside of the product, for p = 1.
Both kinds offer the same: the decay from the chunk's start to each token and from each token to its end, as factors on
vectors that are raised to the power p afterwards, the decay of the whole chunk, scores, and gradients of the vectors.

Shapes: `n` heads of all sequences, `C` tokens, `R` readers of each token, `K` channels; vectors `[n, K, C]`, tokens
last, readers `[n, K, R C]`, scores `[n, C, R, C]`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FORGETS", "ChannelDecay", "HeadDecay"]

# exp(-800) is zero in float64 too, and sums of it over a chunk stay exact to 1e-10 in float64, so it stands for -inf.
FORGETS = -800.0


class HeadDecay:
    """One gate for all channels of a head, or no gates: decays between tokens are one matrix."""

    def __init__(self, log_g: Tensor, p: int, dtype: torch.dtype) -> None:
        """`log_g [n, 1, C]`, or of one row where it is the same for all."""
        self.p = p
        total = log_g.double().clamp(min=FORGETS).cumsum(-1)
        # A float32 difference of float32 sums would be wrong on neighbours; `low` is what rounding left.
        high = total.to(dtype)
        low = (total - high).to(dtype)
        self.between = (high - high.mT).add_(low - low.mT).exp_().triu_()  # [n, C, C], from key j to reader i
        self.from_start = (total / p).exp().to(dtype)  # [n, 1, C]
        self.to_end = ((total[..., -1:] - total) / p).exp().to(dtype)  # [n, 1, C]
        self.whole = total[..., -1:].exp().to(dtype)  # [n, 1, 1]

    def scores(self, readers: Tensor, keys: Tensor) -> Tensor:
        scores = torch.bmm(keys.mT, readers)
        if self.p > 1:
            scores.pow_(self.p)
        return scores.unflatten(2, (-1, keys.shape[2])).mul_(self.between[:, :, None])

    def gradients(self, dscores: Tensor, readers: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Of readers and keys, from the gradient of the scores, which is overwritten."""
        dscores = dscores.mul_(self.between[:, :, None]).flatten(2)
        if self.p > 1:
            dscores.mul_(torch.bmm(keys.mT, readers).pow_(self.p - 1)).mul_(self.p)
        return keys @ dscores, readers @ dscores.mT


class _Level(NamedTuple):
    """The pairs that the cuts of one level part: readers right of a cut, keys left of it; `P` cuts, halves of `s`."""

    reads: Tensor  # readers times their decay since the cut [n, P, s, R, K]
    writes: Tensor  # keys times their decay until the cut [n, P, s, K]
    since: Tensor  # [n, P, s, K]
    until: Tensor  # [n, P, s, K]


class ChannelDecay:
    """A gate for each key channel.

    A chunk is halved, its halves are halved, and so on down to single tokens. Every pair of tokens is parted by exactly
    one of these cuts, and its decay is the product of two: from the key to the cut, and from the cut to the reader.
    Both are products of decays, at most 1, so that nothing overflows and nothing that matters underflows, however
    strong the gates are, a decay of zero is nothing special, and every level is a batch of matrix products.

    Tokens come before channels in here, filled up to a power of two.
    """

    def __init__(self, log_g: Tensor, dtype: torch.dtype) -> None:
        """`log_g [n, K, C]`."""
        self.C = log_g.shape[2]
        self.filled = 1 << (self.C - 1).bit_length()
        decays = self._by_token(log_g.to(dtype)).exp()
        n, _, K = decays.shape
        # Each from its half's start to a token and from a token to its half's end, for halves that double.
        since_start, to_end = decays.clone(), torch.ones_like(decays)
        self.cuts: list[tuple[Tensor, Tensor]] = []
        s = 1
        while s < self.filled:
            since_halves, to_halves = since_start.view(n, -1, 2, s, K), to_end.view(n, -1, 2, s, K)
            self.cuts.append((since_halves[:, :, 1].clone(), to_halves[:, :, 0].clone()))
            left, right = since_halves[:, :, 0, -1:].clone(), since_halves[:, :, 1, -1:].clone()
            since_halves[:, :, 1] *= left
            to_halves[:, :, 0] *= right
            s *= 2
        self.from_start, self.to_end = self._by_channel(since_start), self._by_channel(to_end)  # [n, K, C]
        self.whole = since_start[:, -1:]  # [n, 1, K]

    def _by_token(self, x: Tensor) -> Tensor:
        """`[n, K, ..., C]` as contiguous `[n, filled, ..., K]`, filled up with zeros."""
        return F.pad(x, (0, self.filled - self.C)).transpose(1, -1).contiguous()

    def _by_channel(self, x: Tensor) -> Tensor:
        """The inverse of `_by_token`."""
        return x[:, : self.C].transpose(1, -1).contiguous()

    def _levels(self, readers: Tensor, keys: Tensor) -> list[_Level]:
        """From readers `[n, filled, R, K]` and keys `[n, filled, K]`."""
        levels = []
        for since, until in self.cuts:
            n, P, s, K = since.shape
            reads = readers.view(n, P, 2, s, -1, K)[:, :, 1] * since[:, :, :, None]
            levels.append(_Level(reads, keys.view(n, P, 2, s, K)[:, :, 0] * until, since, until))
        return levels

    def _split(self, readers: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        return self._by_token(readers.unflatten(2, (-1, self.C))), self._by_token(keys)

    def scores(self, readers: Tensor, keys: Tensor) -> Tensor:
        readers, keys = self._split(readers, keys)
        n, filled, R, _ = readers.shape
        scores = readers.new_zeros(n, filled, R, filled)
        scores.diagonal(0, 1, 3).copy_(torch.einsum("ncrk,nck->nrc", readers, keys))
        for reads, writes, _, _ in self._levels(readers, keys):
            met = writes.flatten(0, 1) @ reads.flatten(2, 3).flatten(0, 1).mT  # [n P, s, s R]
            _parted(scores, reads.shape[2]).copy_(met.view(n, -1, *reads.shape[2:3], *reads.shape[2:4]))
        return scores[:, : self.C, :, : self.C]

    def gradients(self, dscores: Tensor, readers: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Of readers and keys, from the gradient of the scores; what it says of later keys is ignored."""
        readers, keys = self._split(readers, keys)
        n, filled, R, K = readers.shape
        fill = filled - self.C
        dscores = F.pad(dscores, (0, fill, 0, 0, 0, fill))
        own = dscores.diagonal(0, 1, 3).transpose(1, 2).unsqueeze(-1)  # [n, filled, R, 1]
        dreaders, dkeys = own * keys[:, :, None], (own * readers).sum(2)
        for reads, writes, since, until in self._levels(readers, keys):
            P, s = since.shape[1:3]
            met = _parted(dscores, s).reshape(n * P, s, s * R)
            dreads = (met.mT @ writes.flatten(0, 1)).view(n, P, s, R, K)
            dwrites = (met @ reads.view(n * P, s * R, K)).view(n, P, s, K)
            dreaders.view(n, P, 2, s, R, K)[:, :, 1].addcmul_(dreads, since[:, :, :, None])
            dkeys.view(n, P, 2, s, K)[:, :, 0].addcmul_(dwrites, until)
        return self._by_channel(dreaders).flatten(2), self._by_channel(dkeys)


def _parted(scores: Tensor, s: int) -> Tensor:
    """The part of `scores [n, C, R, C]` that belongs to cuts between halves of `s` tokens, a view `[n, P, s, s, R]`."""
    n, C, R, _ = scores.shape
    blocks = scores.view(n, -1, 2, s, R, C // (2 * s), 2, s).diagonal(0, 1, 5)  # [n, 2, s, R, 2, s, P]
    return blocks[:, 0, :, :, 1].permute(0, 4, 1, 3, 2)
