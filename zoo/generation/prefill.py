"""Reading prompts of different lengths into a state, at once or in pieces."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import InputError
from zoo.generation.sampling import check_whole
from zoo.models import DecoderConfig, DecoderState
from zoo.states import overwrite_state

__all__ = ["Prefill", "check_prompts", "read_prompts"]


class Prefill(Protocol):
    """`zoo.models.Decoder.prefill`, compiled or not."""

    def __call__(self, tokens: Tensor, state: DecoderState, lengths: Tensor) -> tuple[Tensor, DecoderState]:
        """Return the logits after each row's last real token, `[B, vocab]`, and the state."""
        ...


def check_prompts(tokens: Tensor, lengths: Tensor, max_new_tokens: int, config: DecoderConfig) -> int:
    """Return how many tokens the longest row will have been fed in the end; the last chosen one never is.

    Raises:
        InputError: `tokens` is not `[B, T]`, a length is not from 1 to T, or the model has too few positions.
    """
    if tokens.dim() != 2:
        raise InputError(f"tokens: expected [B, T], was {list(tokens.shape)}")
    B, T = tokens.shape
    if lengths.shape != (B,) or lengths.is_floating_point() or not bool(((lengths >= 1) & (lengths <= T)).all()):
        raise InputError(f"lengths: expected a number from 1 to {T} for each of {B} prompts, was {lengths.tolist()}")
    check_whole("max_new_tokens", max_new_tokens, 0)
    longest = int(lengths.amax()) if B else 0
    needed = longest + max(0, max_new_tokens - 1)
    if config.positions == "learned" and needed > config.max_positions:
        raise InputError(
            f"max_new_tokens: prompt and new tokens need {needed} positions, the model has {config.max_positions}"
        )
    return needed


@torch.no_grad()
def read_prompts(prefill: Prefill, tokens: Tensor, lengths: Tensor, state: DecoderState, piece: int | None) -> Tensor:
    """Read prompts into `state`, in place, and return the logits after each row's last real token, `[B, vocab]`.

    Args:
        prefill: reads a piece.
        tokens: `[B, T]` int64, right-padded to their `lengths [B]`, which are from 1 to T.
        state: of `B` rows, as it was before the first token.
        piece: tokens to read at a time, which bounds the memory that reading takes; None: all at once.
    """
    T = tokens.shape[1]
    if piece is None or piece >= T:
        logits, after = prefill(tokens, state, lengths)
        overwrite_state(state, after)
        return logits
    # All pieces are of one length, so that a compiled model meets no other: padding never enters a state.
    tokens = F.pad(tokens, (0, -T % piece))
    last: Tensor | None = None
    for start in range(0, T, piece):
        # A row that has ended takes nothing from this piece, and keeps the logits that it has.
        part = (lengths - start).clamp(0, piece)
        logits, after = prefill(tokens[:, start : start + piece].contiguous(), state, part)
        overwrite_state(state, after)  # so that there are never more than two states
        last = logits if last is None else torch.where((part > 0)[:, None], logits, last)
    assert last is not None
    return last
