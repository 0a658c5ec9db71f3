"""Text, and token ids, that go on from a prompt."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.data.tokenizer import ByteTokenizer, TextTokenizer, Tokenizer
from zoo.errors import InputError
from zoo.generation.decoding import CompiledDecoder, start_decoding
from zoo.generation.draft import Draft, speculate
from zoo.generation.sampling import NOTHING, Sampling
from zoo.models import Decoder

__all__ = ["generate", "generate_tokens"]

Prompt = TypeVar("Prompt", str, list[str])


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
    prefill_chunk: int | None = None,
    draft: Decoder | CompiledDecoder | Draft | None = None,
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
        prefill_chunk: read the prompts in pieces of so many tokens, which bounds the memory that reading takes and
            changes nothing else; None: at once.
        draft: a smaller model that guesses tokens, which the model checks several at a time; the text is the one that
            it would give without. A `Draft` says how many tokens to guess, and afterwards how many were right.

    Raises:
        InputError: an option out of its range, a model without a tokenizer, a prompt without a token, more tokens
            than the model has positions, or logits that are NaN.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    stops = [stop] if isinstance(stop, str) else list(stop)
    tokenizer = _tokenizer_for(model, tokenizer)
    sampling = Sampling(temperature, top_k, top_p, tokenizer.vocab_size)
    if not prompts:
        return prompt
    tokens, lengths = _encode(prompts, tokenizer)

    # A stop may be spread over several tokens, of which the newest is one; at most four make a character.
    reach: int = 4 * max(map(len, stops), default=0) + 1

    def ended(tokens: list[int]) -> bool:
        if tokens[-1] == tokenizer.separator:
            return True
        return bool(stops) and any(stop in tokenizer.decode(tokens[-reach:]) for stop in stops)

    rows: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(rows)))
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "prefill_chunk": prefill_chunk}
    decoding: Iterable[Tensor]
    if draft is None:
        decoding = start_decoding(model, tokens, lengths, sampling, seed=seed, **options)
    else:
        draft = draft if isinstance(draft, Draft) else Draft(draft)
        decoding = speculate(model, draft, tokens, lengths, sampling, **options)
    for chosen in _on_host(decoding):
        for row in sorted(running):
            if chosen[row] == NOTHING:
                raise _not_a_number(row, int(lengths[row]) + len(rows[row]))
            rows[row].append(chosen[row])
            if ended(rows[row]):
                running.remove(row)
        if not running:
            break
    texts = [
        _cut(_decode_after(tokenizer, tokens[index, : lengths[index]], row), stops) for index, row in enumerate(rows)
    ]
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
    prefill_chunk: int | None = None,
) -> Tensor:
    """Continue token ids `[B, T]`, of which the first `lengths [B]` of each row are real; `[B, max_new_tokens]` int64.

    The other options, and the errors, are those of `generate`.
    """
    sampling = Sampling(temperature, top_k, top_p)
    decoding = start_decoding(
        model, tokens, lengths, sampling, max_new_tokens=max_new_tokens, seed=seed, prefill_chunk=prefill_chunk
    )
    chosen = list(decoding)
    new = torch.stack(chosen, dim=1) if chosen else tokens.new_empty(tokens.shape[0], 0)
    if (new == NOTHING).any():
        row, place = (new == NOTHING).nonzero()[0].tolist()
        raise _not_a_number(row, place + (tokens.shape[1] if lengths is None else int(lengths[row])))
    return new


def _not_a_number(row: int, position: int) -> InputError:
    return InputError(f"model: its logits are NaN after {position} tokens of row {row}")


def _on_host(decoding: Iterable[Tensor]) -> Iterator[list[int]]:
    """Yield the tokens of each step as numbers; a GPU is one step ahead of them, and never waits for the host."""
    ahead: tuple[Tensor, torch.cuda.Event] | None = None
    for tokens in decoding:
        if not tokens.is_cuda:
            yield tokens.tolist()
            continue
        behind, copied = ahead, torch.cuda.Event()
        ahead = tokens.to("cpu", non_blocking=True), copied
        copied.record(torch.cuda.current_stream(tokens.device))
        if behind is not None:
            behind[1].synchronize()
            yield behind[0].tolist()
    if ahead is not None:
        ahead[1].synchronize()
        yield ahead[0].tolist()


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


def _decode_after(tokenizer: Tokenizer, prompt: Tensor, new: list[int]) -> str:
    """Return the text of new tokens as it goes on from a prompt's."""
    return tokenizer.decode_after(prompt, new) if isinstance(tokenizer, TextTokenizer) else tokenizer.decode(new)


def _cut(text: str, stops: Sequence[str]) -> str:
    """Return `text` up to the first of `stops` in it."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
