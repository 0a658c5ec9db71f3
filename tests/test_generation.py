"""Generation against the full forward pass, for every mixer, compiled or not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.generation import compile_decoder, generate, generate_tokens
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig

from .generation.small_models import LIKE_ANOTHER, build, every_mixer, greedy_by_forward, prompts


@every_mixer
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_greedy_tokens_are_those_of_the_full_forward(names: Sequence[str], positions: str) -> None:
    model, (tokens, lengths) = build(names, positions), prompts()
    new = generate_tokens(model, tokens, 20, lengths=lengths)
    for row, prompt, length in zip(new, tokens, lengths, strict=True):
        assert torch.equal(row, greedy_by_forward(model, prompt[:length], 20))


@every_mixer
def test_texts_side_by_side_are_texts_alone(names: Sequence[str]) -> None:
    model, texts = build(names), ["def f(x):", "", "größer"]
    assert generate(model, texts, 12) == [generate(model, text, 12) for text in texts]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_ANOTHER else []) for name in mixers],
)
def test_compiled_generation_is_the_same(name: str) -> None:
    torch._dynamo.reset()
    model, (tokens, lengths) = build([name]), prompts()
    compiled = compile_decoder(torch.compile(model), backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(
            generate_tokens(compiled, tokens, 8, lengths=lengths), generate_tokens(model, tokens, 8, lengths=lengths)
        )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "gated-power" else pytest.mark.slow) for name in mixers]
)
def test_generation_through_inductor_is_the_same(name: str) -> None:
    torch._dynamo.reset()
    model, texts = build([name]), ["def f(x):", "", "größer"]
    assert generate(compile_decoder(model), texts, 12) == generate(model, texts, 12)


def test_a_compiled_model_generates_as_it_is() -> None:
    model = build()
    assert generate(torch.compile(model, backend="aot_eager"), "import", 8) == generate(model, "import", 8)


def test_a_seed_repeats_a_sample() -> None:
    model, (tokens, lengths) = build(), prompts()
    first, again, other = (
        generate_tokens(model, tokens, 12, lengths=lengths, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Fixed(Decoder):
    """A model whose logits are the logarithms of fixed probabilities."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        config = DecoderConfig(vocab_size=len(probabilities), width=2, layers=1, heads=1)
        super().__init__(config, [mixers["linear"].config()])
        self.logits = torch.tensor(probabilities).log()

    def _next_logits(self, x: Tensor) -> Tensor:
        return self.logits.expand(*x.shape[:-1], -1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"temperature": 1.0, "top_p": 1e-9}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.7}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        ({"temperature": 1e-3}, [0, 1, 0, 0]),
        ({}, [0, 1, 0, 0]),
    ],
)
def test_samples_follow_the_distribution(options: dict[str, Any], expected: list[float]) -> None:
    chosen = generate_tokens(Fixed([0.1, 0.4, 0.2, 0.3]), torch.zeros(4000, 1).long(), 1, seed=0, **options)
    torch.testing.assert_close(
        chosen[:, 0].bincount(minlength=4) / 4000, torch.tensor(expected, dtype=torch.float32), atol=0.03, rtol=0
    )


class Spelling:
    """A tokenizer of four letters and, for id 4, no letter at all."""

    vocab_size = 5
    separator: int | None = 4
    byte_lengths = np.array([1, 1, 1, 1, 0])

    def encode(self, text: str | bytes) -> np.ndarray:
        return np.array(["abcd".index(letter) for letter in str(text)], dtype=np.int64)

    def decode(self, ids: Any) -> str:
        return "".join("abcd"[token] for token in ids if token != self.separator)


class Counting(Decoder):
    """A model whose next token is always the one after the last in `0 1 2 ... vocab - 1 0 1`."""

    def __init__(self, vocab_size: int) -> None:
        config = DecoderConfig(vocab_size=vocab_size, width=vocab_size, layers=1, heads=1, positions="none", bias=False)
        super().__init__(config, [mixers["linear"].config()])
        torch.nn.init.eye_(self.token_embedding.weight)
        for block in self.blocks:
            for parameter in block.parameters():
                torch.nn.init.zeros_(parameter)

    def _next_logits(self, x: Tensor) -> Tensor:
        return super()._next_logits(x).roll(1, dims=-1)


def test_texts_end_with_their_document_and_at_stops() -> None:
    model, spelling = Counting(5), Spelling()
    assert generate(model, "a", 3, tokenizer=spelling) == "bcd"
    assert generate(model, "a", 10, tokenizer=spelling) == "bcd"  # the model ends the document after d
    assert generate(model, ["b", "d", "a"], 10, tokenizer=spelling) == ["cd", "", "bcd"]
    assert generate(model, "", 10, tokenizer=spelling) == "abcd"  # the separator alone is the prompt
    assert generate(model, "a", 10, tokenizer=spelling, stop="cd") == "b"
    assert generate(model, ["a", "b"], 10, tokenizer=spelling, stop=["d", "c"]) == ["b", ""]
    assert generate(model, [], 10, tokenizer=spelling) == []
    assert generate(model, "a", 0, tokenizer=spelling) == ""


def test_a_stop_saves_the_steps_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, taken = Counting(5), []
    step = model.step
    monkeypatch.setattr(model, "step", lambda tokens, state: (taken.append(1), step(tokens, state))[1])
    assert generate(model, ["a", "b"], 1000, tokenizer=Spelling(), stop="d") == ["bc", "c"]
    assert len(taken) == 2


class Letters(Spelling):
    """Four letters and nothing else, and how many were decoded at a time."""

    vocab_size = 4
    separator = None

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def decode(self, ids: Any) -> str:
        self.decoded.append(len(ids))
        return super().decode(ids)


def test_a_stop_is_looked_for_no_further_back_than_it_can_begin() -> None:
    letters = Letters()
    assert len(generate(Counting(4), "a", 100, tokenizer=letters, stop="dd")) == 100
    assert max(letters.decoded[:-1]) == 9
    assert generate(Counting(4), "a", 100, tokenizer=letters, stop=["dd", "dabc"]) == "bc"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_that_the_tokenizer_does_not_know_are_not_chosen(temperature: float) -> None:
    text = generate(Counting(8), "d", 30, tokenizer=Letters(), temperature=temperature, seed=0)  # a padded vocabulary
    assert len(text) == 30


@pytest.mark.parametrize("options", [{}, {"temperature": 1e-3}, {"temperature": 1e-3, "top_k": 3, "top_p": 0.9}])
def test_logits_that_are_not_numbers_are_named_with_their_place(options: dict[str, Any]) -> None:
    class Breaking(Counting):
        def _next_logits(self, x: Tensor) -> Tensor:
            logits = super()._next_logits(x)
            return torch.where(logits.argmax(-1, keepdim=True) == 3, torch.nan, logits)

    with pytest.raises(InputError, match="model: its logits are NaN after 3 tokens of row 1"):
        generate_tokens(Breaking(5), torch.tensor([[3, 4], [0, 1]]), 3, **options)
    with pytest.raises(InputError, match="model: its logits are NaN after 4 tokens of row 0"):
        generate(Breaking(5), ["a", "d"], 3, tokenizer=Spelling(), **options)


def test_bad_input_is_named() -> None:
    model, (tokens, _) = build(), prompts()
    unmarked = Spelling()
    unmarked.separator = None
    calls: list[tuple[str, Any]] = [
        (r"temperature: expected a number from 0 on, was -1", lambda: generate(model, "a", temperature=-1)),
        (r"top_k: expected a whole number from 1 on, was 0", lambda: generate(model, "a", temperature=1.0, top_k=0)),
        (r"top_p: expected above 0 and at most 1, was 1.5", lambda: generate(model, "a", temperature=1.0, top_p=1.5)),
        (r"max_new_tokens: expected a whole number from 0 on, was -3", lambda: generate(model, "a", -3)),
        (r"max_new_tokens: expected a whole number .*, was 2.5", lambda: generate(model, "a", 2.5)),
        (r"prefill_chunk: expected a whole number .*, was 0.5", lambda: generate(model, "a", prefill_chunk=0.5)),
        (
            r"max_new_tokens: prompt and new tokens need 49 positions, the model has 48",
            lambda: generate(model, "a", 48),
        ),
        (r"tokenizer: needed for a model of 5 tokens; bytes are 257", lambda: generate(Counting(5), "a")),
        (
            r"tokenizer: has 5 tokens, the model only 4",
            lambda: generate(Counting(4), "a", tokenizer=Spelling()),
        ),
        (
            r"prompt: expected at least one token, was empty",
            lambda: generate(Counting(5), ["a", ""], tokenizer=unmarked),
        ),
        (r"tokens: expected \[B, T\], was \[9\]", lambda: generate_tokens(model, tokens[0])),
        (
            r"lengths: expected a number from 1 to 9 for each of 3 prompts, was \[0, 1, 2\]",
            lambda: generate_tokens(model, tokens, lengths=torch.arange(3)),
        ),
    ]
    for message, call in calls:
        with pytest.raises(InputError, match=message):
            call()


def test_as_many_tokens_as_positions_fit() -> None:
    model = build()
    assert generate_tokens(model, torch.zeros(1, 8).long(), 41).shape == (1, 41)
    assert generate_tokens(model, torch.zeros(2, 8).long(), 0).shape == (2, 0)
