"""Speculative decoding: the tokens that the model alone would choose, whatever is guessed."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.errors import InputError
from zoo.generation import Draft, compile_decoder, generate, generate_tokens
from zoo.generation.draft import speculate
from zoo.generation.sampling import Sampling
from zoo.models import Decoder

from .small_models import HYBRID, build, every_mixer, prompts


def tokens_with(
    model: Any, draft: Draft, tokens: Tensor, lengths: Tensor, count: int, chunk: int | None = None
) -> Tensor:
    chosen = speculate(model, draft, tokens, lengths, Sampling(), max_new_tokens=count, prefill_chunk=chunk)
    return torch.stack([*chosen, tokens.new_zeros(len(tokens))], 1)[:, :-1]


class Worse(Decoder):
    """The model, which chooses another token now and then."""

    def _next_logits(self, x: Tensor) -> Tensor:
        logits = super()._next_logits(x)
        wrong = (x.sum(-1, keepdim=True) * 1000).long() % 3 == 0
        return torch.where(wrong, logits.roll(1, -1), logits)


def worse(model: Decoder) -> Decoder:
    draft = Worse(model.config, model.mixer_configs).double()
    draft.load_state_dict(model.state_dict())
    return draft


@every_mixer
@settings(max_examples=4)
@given(ahead=st.integers(1, 5), count=st.integers(0, 30), chunk=st.sampled_from([None, 4]), rows=st.integers(1, 3))
def test_tokens_are_the_model_s_own(names: Sequence[str], ahead: int, count: int, chunk: int | None, rows: int) -> None:
    """In float64, where rounding decides nothing; long enough that journals fold."""
    model = build(names).double()
    tokens, lengths = (x[:rows] for x in prompts())
    expected = generate_tokens(model, tokens, count, lengths=lengths)
    draft = Draft(worse(model), ahead)
    assert torch.equal(tokens_with(model, draft, tokens, lengths, count, chunk), expected)
    assert 0 <= draft.accepted <= draft.guessed


@every_mixer
def test_another_model_may_draft(names: Sequence[str]) -> None:
    model, (tokens, lengths) = build(names).double(), prompts()
    expected = generate_tokens(model, tokens[:1], 30, lengths=lengths[:1])
    for mixer in ("gated-power", "rwkv7", "sliding-window"):
        draft = Draft(build([mixer]).double())
        assert torch.equal(tokens_with(model, draft, tokens[:1], lengths[:1], 30), expected)


def test_a_model_accepts_all_that_it_drafts_itself() -> None:
    model, draft = build().double(), Draft(build().double(), ahead=3)
    tokens, lengths = (x[:1] for x in prompts())
    assert tokens_with(model, draft, tokens, lengths, 21).shape == (1, 21)
    assert draft.accepted == draft.guessed == 15  # of 20 tokens behind the first, the last of each 4 is the model's


def test_texts_are_those_without_a_draft() -> None:
    model, draft = build().double(), Draft(worse(build().double()), 2)
    texts = ["def f(x):", "", "größer"]
    assert generate(model, texts, 12, draft=draft, stop="q") == generate(model, texts, 12, stop="q")
    assert draft.guessed > 0
    assert generate(model, "a", 12, draft=worse(model)) == generate(model, "a", 12)


@pytest.mark.parametrize("names", [HYBRID, ("rwkv7",), ("mamba2",)], ids="-".join)
def test_compiled_models_check_and_draft(names: Sequence[str]) -> None:
    torch._dynamo.reset()
    model, (tokens, lengths) = build(names).double(), prompts()
    expected = generate_tokens(model, tokens, 12, lengths=lengths)
    pair = (compile_decoder(x, backend="aot_eager") for x in (model, worse(model)))
    checker, drafter = pair
    assert torch.equal(tokens_with(checker, Draft(drafter, 2), tokens, lengths, 12), expected)


def test_bad_drafts_are_named() -> None:
    model = build()
    for message, options in (
        (r"temperature: expected 0 with a draft, whose tokens are checked, was 0.5", {"temperature": 0.5}),
        (r"draft: expected a model of 257 tokens as the other is, was 300", {"draft": build(vocab_size=300)}),
    ):
        with pytest.raises(InputError, match=message):
            generate(model, "a", **{"draft": build(), **options})
    with pytest.raises(InputError, match="ahead: expected a whole number from 1 on, was 0"):
        Draft(model, 0)
