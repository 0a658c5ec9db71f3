"""The state of power attention with a journal: recent tokens as they are, beside the sums over those before them.

A step reads the sums and never writes them, and meets the journal's tokens as the definition does. At first all tokens
are in the journal, and sums over nothing are not read. Once it is full they enter the sums, and from then on the oldest
ones do, many at a time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.errors import InputError
from zoo.kernels.power.api import power_attention
from zoo.kernels.power.expansion import state_size
from zoo.kernels.power.heads import Heads
from zoo.kernels.power.state import PowerState

__all__ = ["FORGETS", "PowerJournalState", "absorb", "check_journal", "due", "fold_size", "open_journal", "worthwhile"]

FORGETS = -(2.0**14)
"""The log gate that stands for one of `-inf` in sums: its exponential is 0 in float64 too, and sums stay numbers."""


class PowerJournalState(NamedTuple):
    """`PowerState` of a row's first `folded` tokens, and a journal of all tokens after them.

    The journal is a ring: the token at position t stands in slot `t mod L`, and at most L - 1 of them are apart from
    the sums. `gates` are log gates summed up to and with a token, those of `-inf` as `FORGETS`.
    """

    S: Tensor  # [B, Hs, D, V]
    z: Tensor  # [B, Hs, D]
    keys: Tensor  # [B, L, Hk, K], floating
    values: Tensor  # [B, L, Hv, V], as keys
    gates: Tensor  # [B, L, Hv], float64
    folded: Tensor  # [B] int64

    @property
    def sums(self) -> PowerState:
        """The sums alone."""
        return PowerState(self.S, self.z)

    @property
    def slots(self) -> int:
        """L."""
        return self.keys.shape[1]


def fold_size(rows: int) -> int:
    """Return how many tokens enter a state of so many rows at a time: from 16 to 256, a power of two.

    Of C a step reads C / 2 on average, of `K + V` narrow numbers each, and writes a C-th of the state, D rows of `V`
    wide ones: the least at `C = sqrt(2 D)`.
    """
    size = 16
    while size < 256 and 2 * size * size <= 2 * rows:
        size *= 2
    return size


def worthwhile(sums: PowerState, heads: Heads, K: int, dtype: torch.dtype) -> int:
    """Return how many tokens in a journal, keys and values of this dtype, take as many bytes as a row's sums."""
    _, states, D, V = sums.S.shape
    token = (heads.key * K + heads.value * V) * dtype.itemsize + heads.value * torch.float64.itemsize
    return states * D * (V + 1) * sums.S.element_size() // token


def due(position: Tensor, slots: int, fold: int, keep: int) -> Tensor:
    """Return how many of a row's `position [B]` tokens are in its sums by then: `[B]`, none or a multiple of `fold`.

    It is none until all L slots but one are taken. From then on at least `keep` and fewer than `keep + fold` tokens are
    apart.
    """
    return torch.where(position < slots - 1, 0, (position - keep).div(fold, rounding_mode="floor") * fold)


def open_journal(sums: PowerState, heads: Heads, K: int, slots: int, dtype: torch.dtype) -> PowerJournalState:
    """Return `sums` over nothing, and an empty journal of so many slots; keys and values are of `dtype`."""
    B, V = sums.S.shape[0], sums.S.shape[-1]
    return PowerJournalState(
        *sums,
        keys=sums.S.new_zeros(B, slots, heads.key, K, dtype=dtype),
        values=sums.S.new_zeros(B, slots, heads.value, V, dtype=dtype),
        gates=sums.S.new_zeros(B, slots, heads.value, dtype=torch.float64),
        folded=sums.S.new_zeros(B, dtype=torch.int64),
    )


def absorb(state: PowerJournalState, until: Tensor, most: int, *, p: int) -> PowerState:
    """Return the sums over a row's first `until [B]` tokens, of which at most `most` were apart; changes no argument.

    There are gradients, where they are wanted.
    """
    (S, _, keys, values, gates, folded), L = state, state.slots
    count = (until - folded).clamp(0, most)
    place = folded[:, None] + torch.arange(most, device=folded.device)
    row, slot = torch.arange(len(folded), device=folded.device)[:, None], place % L
    log_g = gates[row, slot] - gates[row, (place - 1) % L]
    log_g = torch.where(log_g < FORGETS / 2, -torch.inf, log_g).to(S.dtype)
    dtype = S.dtype if S.dtype == torch.float64 else keys.dtype
    k, v = keys[row, slot].to(dtype), values[row, slot].to(dtype)
    has_offset = S.shape[2] != state_size(keys.shape[-1], p)
    _, sums = power_attention(
        k, k, v, log_g, p=p, scale=1.0, offset=float(has_offset), normalize=False, state=state.sums, return_state=True,
        lengths=count,
    )  # fmt: skip
    assert sums is not None
    return sums


def check_journal(
    state: PowerJournalState, k: Tensor, v: Tensor, position: Tensor, *, fold: int, keep: int
) -> None:  # fmt: skip
    """Check what stands beside the sums, for keys `[B, ..., Hk, K]`, values `[B, ..., Hv, V]` from `position [B]` on.

    Raises:
        InputError: names the part, what it was and what it must be.
    """
    B, key, value, L = k.shape[0], k.shape[-2:], v.shape[-2:], state.slots
    for name, x, shape, dtype in (
        ("state.keys", state.keys, (B, L, *key), None),
        ("state.values", state.values, (B, L, *value), state.keys.dtype),
        ("state.gates", state.gates, (B, L, value[0]), torch.float64),
        ("state.folded", state.folded, (B,), torch.int64),
        ("position", position, (B,), torch.int64),
    ):
        if x.shape != shape:
            raise InputError(f"{name}: expected {list(shape)}, was {list(x.shape)}")
        if x.dtype != dtype if dtype is not None else not x.is_floating_point():
            raise InputError(f"{name}: expected {dtype or 'a floating dtype'}, was {x.dtype}")
        if x.device != k.device:
            raise InputError(f"{name}: expected on {k.device} as q is, was on {x.device}")
    if not 0 <= keep <= L - 3:
        raise InputError(f"keep: expected from 0 to {L - 3}, for a journal of {L} slots, was {keep}")
    if not 1 <= fold <= L - 2 - keep:
        rest = "" if keep == 0 else f" of which {keep} tokens are kept"
        raise InputError(f"fold: expected from 1 to {L - 2 - keep}, for a journal of {L} slots{rest}, was {fold}")
