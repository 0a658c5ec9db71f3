"""Speculative decoding: a smaller model guesses some tokens, and the model checks them in one forward pass.

Source: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.generation.decoding import CompiledDecoder
from zoo.generation.prefill import check_prompts, read_prompts
from zoo.generation.sampling import Sampling, check_whole
from zoo.models import Decoder

__all__ = ["Draft", "speculate"]


class Draft:
    """A model that guesses `ahead` tokens at a time, and how many of them were right.

    Args:
        model: of the same tokens as the one whose tokens it guesses.
        ahead: tokens to guess before they are checked.

    Raises:
        InputError: `ahead` is no number of tokens from 1 on.
    """

    def __init__(self, model: Decoder | CompiledDecoder, ahead: int = 4) -> None:
        check_whole("ahead", ahead, 1)
        self.model, self.ahead = model, ahead
        self.guessed = 0
        """Tokens that were guessed so far, of all rows."""
        self.accepted = 0
        """Tokens among them that were the model's own."""


@torch.no_grad()
def speculate(
    model: Decoder | CompiledDecoder,
    draft: Draft,
    tokens: Tensor,
    lengths: Tensor | None,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    prefill_chunk: int | None = None,
) -> Iterator[Tensor]:
    """Yield the tokens that the model alone would choose, one a row `[B]` int64, after prompts `[B, T]`.

    The model reads its last token and those guessed after it, and chooses after each. Of these choices all are its own
    up to the first that is another than was guessed; what was read after that is taken back. Rows go on together, by as
    many tokens as were right in all of them.

    Raises:
        InputError: as `start_decoding`; the models are of different tokens; a temperature other than 0.
    """
    helper, B = draft.model, tokens.shape[0]
    if sampling.temperature != 0:
        raise InputError(f"temperature: expected 0 with a draft, whose tokens are checked, was {sampling.temperature}")
    if helper.config.vocab_size != model.config.vocab_size:
        sizes = f"{model.config.vocab_size} tokens as the other is, was {helper.config.vocab_size}"
        raise InputError(f"draft: expected a model of {sizes}")
    if prefill_chunk is not None:
        check_whole("prefill_chunk", prefill_chunk, 1)
    lengths = torch.full((B,), tokens.shape[-1]) if lengths is None else lengths
    needed = max(check_prompts(tokens, lengths, max_new_tokens, one.config) for one in (model, helper))
    if max_new_tokens == 0:
        return
    state, guess = (one.decoding_state(B, max_len=needed, rollback=draft.ahead) for one in (model, helper))
    tokens, lengths = tokens.to(state.position.device), lengths.to(state.position.device)
    last = sampling.choose(read_prompts(model.prefill, tokens, lengths, state, prefill_chunk))
    read_prompts(helper.prefill, tokens, lengths, guess, prefill_chunk)
    yield last
    left = max_new_tokens - 1
    while left > 0:
        block, count = [last.clamp(min=0)], min(draft.ahead, left - 1)
        for _ in range(count):
            block.append(sampling.choose(helper.step(block[-1], guess)).clamp(min=0))
        helper.step(block[-1], guess)  # so that it has read them all, as the model has
        guessed = torch.stack(block, 1)
        logits, after = model.forward(guessed, state, True)
        assert after is not None
        state = after
        chosen = sampling.choose(logits.flatten(0, 1)).view(B, -1)
        right = int((chosen[:, :-1] == guessed[:, 1:]).cumprod(1).sum(1).amin()) if B else count
        draft.guessed, draft.accepted = draft.guessed + B * count, draft.accepted + B * right
        model.rollback(state, count - right)
        helper.rollback(guess, count - right)
        yield from chosen[:, : right + 1].unbind(1)
        last, left = chosen[:, right], left - right - 1
