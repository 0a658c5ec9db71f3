"""Where sequences begin in a batch of transformers': behind padding on the left, and where positions start anew."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import InputError

__all__ = ["packing_resets", "padding_resets"]


def padding_resets(attention_mask: Tensor, tokens: int, *, keeps_state: bool) -> Tensor | None:
    """Return which of the last `tokens` begin a row: its first real token, `[B, tokens]` bool; None: none does.

    Padding before that token is forgotten there. Values are looked at outside the compiler, as transformers does to
    choose its masks.

    Args:
        attention_mask: `[B, S]`, one for real tokens, of this call and those before it.
        tokens: of this call.
        keeps_state: whether a state goes on from the last token, so that no padding may stand there.

    Raises:
        InputError: padding stands between tokens, or behind them where a state is kept.
    """
    if attention_mask.dim() != 2:
        raise InputError(
            "attention_mask: expected [B, S] with ones for real tokens, was "
            f"{list(attention_mask.shape)}: converted layers have no scores that a mask of pairs could leave out"
        )
    real = attention_mask.bool()
    before = F.pad(real, (1, 0))[:, :-1]
    if not torch.compiler.is_compiling() and real.device.type != "meta":
        if bool(real.all()):
            return None
        _check_padding(real, before, keeps_state=keeps_state)
    return (real & ~before)[:, -tokens:] if tokens > 1 else None


def _check_padding(real: Tensor, before: Tensor, *, keeps_state: bool) -> None:
    split = (real & ~before).sum(1) > 1
    behind = ~real[:, -1] & real.any(1) & keeps_state
    wrong = (split | behind).nonzero()
    if len(wrong):
        row = int(wrong[0])
        where = "between tokens" if bool(split[row]) else "behind the last token, from which a state shall go on,"
        raise InputError(
            "attention_mask: expected padding only before the tokens of a row, found some "
            f"{where} in row {row}; set tokenizer.padding_side = 'left'"
        )


def packing_resets(position_ids: Tensor, rows: int) -> Tensor | None:
    """Return which tokens of packed rows begin a sequence, `[rows, T]` bool: where positions do not go on by one.

    Args:
        position_ids: `[B or 1, T]`.
        rows: B.
    """
    if position_ids.dim() != 2 or position_ids.shape[1] < 2:
        return None
    resets = F.pad(position_ids[:, 1:] - position_ids[:, :-1] != 1, (1, 0))
    if not torch.compiler.is_compiling() and resets.device.type != "meta" and not bool(resets.any()):
        return None
    return resets.expand(rows, -1)
