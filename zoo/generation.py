"""Text from a model: the prompt at once, then one token at a time from a state whose buffers are written in place."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.data.tokenizer import ByteTokenizer, Tokenizer
from zoo.errors import InputError
from zoo.models import Decoder

__all__ = ["CompiledDecoder", "compile_decoder", "generate", "generate_tokens"]

Prompt = TypeVar("Prompt", str, list[str])


class CompiledDecoder:
    """A decoder with its two entry points for generation compiled whole, each on its first use.

    `prefill` takes prompts of any length and `step` one token a row; both are those of `zoo.models.Decoder`. Made by
    `compile_decoder`.
    """

    def __init__(self, model: Decoder, **options: Any) -> None:
        self.config = model.config
        self.init_state = model.init_state
        self.prefill = torch.compile(model.prefill, fullgraph=True, **options)
        self.step = torch.compile(model.step, fullgraph=True, **options)


def compile_decoder(model: Decoder, **options: Any) -> CompiledDecoder:
    """Return `model` ready for compiled generation; it shares the parameters, so training it further shows.

    Args:
        model: a decoder, or what `torch.compile` made of one (whose `step` would run uncompiled).
        options: passed on to `torch.compile`.
    """
    return CompiledDecoder(getattr(model, "_orig_mod", model), **options)


def generate(
    model: Decoder | CompiledDecoder,
    prompt: Prompt,
    max_new_tokens: int = 64,
    *,
    tokenizer: Tokenizer | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
) -> Prompt:
    """Continue a prompt, or a list of them of any lengths side by side, and return the new text only.

    A prompt is taken for the beginning of a document, and a text ends where the model ends the document.

    Args:
        model: a `Decoder`, or `compile_decoder(model)` to run compiled.
        prompt: one text, or a list (then a list comes back).
        max_new_tokens: tokens to generate at most.
        tokenizer: None: bytes, for a model of 257 tokens.
        temperature: divides the logits before sampling; 0 always takes the likeliest token.
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the likeliest tokens that together reach this probability.
        seed: makes sampling repeatable; None: torch's default generator.
        stop: text, or texts, before the first of which the result ends.

    Raises:
        InputError: an option out of its range, a model without a tokenizer, a prompt without a token, or more tokens
            than the model has positions.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    stops = [stop] if isinstance(stop, str) else list(stop)
    sampler = _Sampler(temperature, top_k, top_p, seed)
    tokenizer = _tokenizer_for(model, tokenizer)
    if not prompts:
        return prompt
    tokens, lengths = _encode(prompts, tokenizer)

    def ended(tokens: list[int]) -> bool:
        if tokens[-1] == tokenizer.separator:
            return True
        # A stop may be spread over several tokens, so it is looked for in the text of them all.
        return bool(stops) and any(text in tokenizer.decode(tokens) for text in stops)

    rows: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(rows)))
    for chosen in _stream(model, tokens, lengths, max_new_tokens, sampler):
        for row in sorted(running):
            rows[row].append(int(chosen[row]))
            if ended(rows[row]):
                running.remove(row)
        if not running:
            break
    texts = [_cut(tokenizer.decode(row), stops) for row in rows]
    return texts[0] if isinstance(prompt, str) else texts


def generate_tokens(
    model: Decoder | CompiledDecoder,
    tokens: Tensor,
    max_new_tokens: int = 64,
    *,
    lengths: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Tensor:
    """Continue token ids `[B, T]`, of which the first `lengths [B]` of each row are real; `[B, max_new_tokens]` int64.

    The other options, and the errors, are those of `generate`.
    """
    if tokens.dim() != 2:
        raise InputError(f"tokens: expected [B, T], was {list(tokens.shape)}")
    lengths = torch.full(tokens.shape[:1], tokens.shape[1]) if lengths is None else lengths
    sampler = _Sampler(temperature, top_k, top_p, seed)
    chosen = list(_stream(model, tokens, lengths, max_new_tokens, sampler))
    return torch.stack(chosen, dim=1) if chosen else tokens.new_empty(tokens.shape[0], 0)


class _Sampler:
    """Choose the next token of every row from its logits."""

    def __init__(self, temperature: float, top_k: int | None, top_p: float | None, seed: int | None) -> None:
        if not 0 <= temperature < math.inf:
            raise InputError(f"temperature: expected a number from 0 on, was {temperature}")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k: expected at least 1, was {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(f"top_p: expected above 0 and at most 1, was {top_p}")
        self.temperature, self.top_k, self.top_p, self.seed = temperature, top_k, top_p, seed
        self.generator: torch.Generator | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return `[B]` int64 for logits `[B, vocab]`."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        if self.generator is None and self.seed is not None:
            self.generator = torch.Generator(logits.device).manual_seed(self.seed)
        # Likeliest first, so that both limits are a cut through one order.
        probabilities, order = (logits.float() / self.temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        if self.top_k is not None:
            probabilities[:, self.top_k :] = 0
        if self.top_p is not None:
            before = probabilities.cumsum(dim=-1) - probabilities
            probabilities[before >= self.top_p * probabilities.sum(dim=-1, keepdim=True)] = 0
        choice = torch.multinomial(probabilities, 1, generator=self.generator)
        return order.gather(-1, choice)[:, 0]


@torch.no_grad()
def _stream(
    model: Decoder | CompiledDecoder, tokens: Tensor, lengths: Tensor, max_new_tokens: int, sampler: _Sampler
) -> Iterator[Tensor]:
    """Yield the next token of every row, `[B]`, `max_new_tokens` times."""
    B, T = tokens.shape
    if lengths.shape != (B,) or lengths.is_floating_point() or not bool(((lengths >= 1) & (lengths <= T)).all()):
        raise InputError(f"lengths: expected a number from 1 to {T} for each of {B} prompts, was {lengths.tolist()}")
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens: expected 0 or more, was {max_new_tokens}")
    if max_new_tokens == 0:
        return
    needed, limit = int(lengths.amax()) + max_new_tokens - 1, model.config.max_positions  # the last one is not fed back
    if model.config.positions == "learned" and needed > limit:
        raise InputError(f"max_new_tokens: prompt and new tokens need {needed} positions, the model has {limit}")
    state = model.init_state(B, max_len=needed)
    device = state.position.device
    logits, state = model.prefill(tokens.to(device), state, lengths.to(device))
    for remaining in reversed(range(max_new_tokens)):
        chosen = sampler(logits)
        yield chosen
        if remaining:
            logits = model.step(chosen, state)


def _encode(prompts: Sequence[str], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Return the prompts as documents, right-padded `[B, T]` int64, and their lengths `[B]`."""
    start = [] if tokenizer.separator is None else [tokenizer.separator]
    rows = [torch.tensor([*start, *tokenizer.encode(text)], dtype=torch.int64) for text in prompts]
    if any(len(row) == 0 for row in rows):
        raise InputError("prompt: expected at least one token, was empty (this tokenizer marks no documents)")
    return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def _tokenizer_for(model: Decoder | CompiledDecoder, tokenizer: Tokenizer | None) -> Tokenizer:
    vocab_size = model.config.vocab_size
    if tokenizer is None and vocab_size == ByteTokenizer.vocab_size:
        return ByteTokenizer()
    if tokenizer is None:
        raise InputError(f"tokenizer: needed for a model of {vocab_size} tokens; bytes are {ByteTokenizer.vocab_size}")
    if tokenizer.vocab_size > vocab_size:
        raise InputError(f"tokenizer: has {tokenizer.vocab_size} tokens, the model only {vocab_size}")
    return tokenizer


def _cut(text: str, stops: Sequence[str]) -> str:
    """Return `text` up to the first of `stops` in it."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
