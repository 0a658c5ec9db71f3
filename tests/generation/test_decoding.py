"""Decoding step by step: what stays where it is, what goes on from where, and what is kept for the next batch."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree

from zoo.errors import InputError
from zoo.generation import CompiledDecoder, Decoding, compile_decoder, generate_tokens
from zoo.generation.decoding import start_decoding
from zoo.generation.sampling import Sampling
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderState
from zoo.states import map_state

from .small_models import LIKE_ANOTHER, build, every_mixer, prompts


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def compiled(model: Decoder, backend: Any = "aot_eager") -> CompiledDecoder:
    return compile_decoder(model, backend=backend)


def addresses(state: DecoderState) -> list[int]:
    return [part.data_ptr() for part in _pytree.tree_leaves(state)]


def decode(model: Decoder, lengths: Tensor, tokens: Tensor, chunk: int | None, count: int) -> tuple[Tensor, Any]:
    decoding = start_decoding(model, tokens, lengths, Sampling(), max_new_tokens=count, prefill_chunk=chunk)
    return torch.stack(list(decoding), dim=1), decoding.state


@every_mixer
@settings(max_examples=8)
@given(data=st.data(), chunk=st.integers(1, 14))
def test_a_prompt_in_pieces_is_the_prompt(names: Sequence[str], data: st.DataObject, chunk: int) -> None:
    model = build(names, "rotary").double()  # where rounding decides nothing
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 13), min_size=1, max_size=3)))
    tokens = torch.randint(0, 257, (len(lengths), int(lengths.amax()) + data.draw(st.integers(0, 3))))
    whole, state = decode(model, lengths, tokens, None, 5)
    pieces, after = decode(model, lengths, tokens, chunk, 5)
    assert torch.equal(pieces, whole)
    for a, b in zip(_pytree.tree_leaves(after), _pytree.tree_leaves(state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@every_mixer
def test_a_prompt_in_pieces_is_the_prompt_in_float32(names: Sequence[str]) -> None:
    model, (tokens, lengths) = build(names), prompts()
    whole, state = decode(model, lengths, tokens, None, 1)
    pieces, after = decode(model, lengths, tokens, 2, 1)
    assert torch.equal(pieces, whole)
    for a, b in zip(_pytree.tree_leaves(after), _pytree.tree_leaves(state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_ANOTHER else []) for name in mixers]
)
def test_pieces_and_steps_compile_once(name: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    model = build([name])
    decoder, (tokens, lengths) = compiled(model, counter), prompts()
    for _ in range(2):
        decoding = decoder.decoding(tokens, lengths, max_new_tokens=10, prefill_chunk=4)
        assert torch.equal(torch.stack(list(decoding), 1), generate_tokens(model, tokens, 10, lengths=lengths))
    assert counter.frame_count == 2  # one for a piece, one for a step


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 9, "top_p": 0.9}])
def test_a_seed_gives_the_same_tokens_compiled_or_not(options: dict[str, Any]) -> None:
    model, (tokens, lengths) = build(), prompts()
    options = {"lengths": lengths, "seed": 5, **options}
    assert torch.equal(
        generate_tokens(compiled(model), tokens, 12, **options), generate_tokens(model, tokens, 12, **options)
    )


def test_without_a_seed_the_default_generator_decides() -> None:
    model, (tokens, _) = build(), prompts()
    torch.manual_seed(3)
    first = generate_tokens(model, tokens, 12, temperature=1.0)
    assert not torch.equal(generate_tokens(model, tokens, 12, temperature=1.0), first)
    torch.manual_seed(3)
    assert torch.equal(generate_tokens(model, tokens, 12, temperature=1.0), first)


@every_mixer
def test_decoding_stays_where_it_is(names: Sequence[str]) -> None:
    model, (tokens, lengths) = build(names), prompts()
    decoding = compiled(model).decoding(tokens, lengths, max_new_tokens=8)
    before, first = addresses(decoding.state), decoding.next()
    chosen = [first.clone()]
    for _ in range(7):
        following = decoding.next()
        assert following.data_ptr() == first.data_ptr()
        chosen.append(following.clone())
    assert addresses(decoding.state) == before
    assert torch.equal(torch.stack(chosen, 1), generate_tokens(model, tokens, 8, lengths=lengths))
    assert decoding.state.position.tolist() == (lengths + 7).tolist()  # the last token has not been fed
    with pytest.raises(InputError, match="max_new_tokens: expected more, all of them were given"):
        decoding.next()


@every_mixer
def test_decoding_goes_on_from_any_state(names: Sequence[str]) -> None:
    model, (tokens, lengths) = build(names), prompts()
    whole = generate_tokens(model, tokens, 12, lengths=lengths)
    for runner in (model, compiled(model)):
        state = model.init_state(3, max_len=24)
        with torch.no_grad():
            logits, state = model.prefill(tokens, state, lengths)
        first = logits.argmax(-1)
        decoding = Decoding.from_state(runner, state, first, max_new_tokens=11)
        assert decoding.state is state
        assert torch.equal(torch.stack([first, *decoding], 1), whole)
        assert torch.equal(first, whole[:, 0])


def test_a_full_cache_is_refused_however_it_is_decoded() -> None:
    model, tokens = build(("power", "softmax"), positions="rotary"), torch.randint(257, (2, 3))
    decoder = compiled(model)

    def read() -> DecoderState:
        return model.prefill(tokens, model.init_state(2, max_len=4), torch.tensor([3, 3]))[1]

    assert model.capacity(read()) == 4
    assert build(("power",)).capacity(build(("power",)).init_state(1)) is None
    refusal = "state: holds 4 tokens, 5 needed"
    for runner in (model, decoder):
        state = read()
        runner.step(tokens[:, 0], state)
        with pytest.raises(InputError, match=refusal):
            runner.step(tokens[:, 0], state)
        with pytest.raises(InputError, match=refusal):
            runner.prefill(tokens[:, :2], read(), torch.tensor([1, 2]))
        with pytest.raises(InputError, match="max_new_tokens: expected at most 1, for which the state has room, was 2"):
            Decoding.from_state(runner, read(), tokens[:, 0], max_new_tokens=2)
        decoding = Decoding.from_state(runner, read(), tokens[:, 0])
        decoding.next()
        with pytest.raises(InputError, match="state: its cache is full"):
            decoding.next()


def test_decoding_begins_anywhere() -> None:
    model = build(positions="rotary", names=["gated-power"])
    state = map_state(lambda x: x.fill_(1_000_000) if x.dtype == torch.int64 else x, model.init_state(2))
    decoding = Decoding.from_state(compiled(model), state, torch.tensor([3, 4]), temperature=1.0, seed=0)
    for _ in range(3):
        decoding.next()
    assert state.position.tolist() == [1_000_003] * 2
    assert all(part.is_floating_point() for part in _pytree.tree_leaves(state.layers))  # it is counted once


def test_a_decoder_keeps_a_state_for_the_next_batch() -> None:
    model, (tokens, lengths) = build(), prompts()
    decoder = compiled(model)
    decoding = decoder.decoding(tokens, lengths, max_new_tokens=5)
    kept, expected = addresses(decoding.state), torch.stack(list(decoding), 1)

    beside = decoder.decoding(tokens, lengths, max_new_tokens=5)  # the first is still there
    assert not set(addresses(beside.state)) & set(kept)
    assert torch.equal(torch.stack(list(beside), 1), expected)
    kept = addresses(beside.state)
    del beside, decoding
    again = decoder.decoding(tokens[:, :7], lengths.clamp(max=7), max_new_tokens=9)
    assert addresses(again.state) == kept
    assert torch.equal(
        torch.stack(list(again), 1), generate_tokens(model, tokens[:, :7], 9, lengths=lengths.clamp(max=7))
    )
    del again
    for change in ({"temperature": 1.0}, {"tokens": tokens[:2], "lengths": lengths[:2]}):
        decoder.decoding(**{"tokens": tokens, "lengths": lengths, "max_new_tokens": 5, **change})
        assert decoder._kept is not None
        assert addresses(decoder._kept.stepper.state) != kept
        kept = addresses(decoder._kept.stepper.state)
    decoder.release()
    assert decoder._kept is None


def test_weights_that_moved_are_found() -> None:
    model, (tokens, lengths) = build(), prompts()
    decoder = compiled(model)
    list(decoder.decoding(tokens, lengths, max_new_tokens=5, prefill_chunk=3))
    stepper = decoder._kept.stepper
    moved = {name: weight.flip(0).clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(moved, assign=True)
    decoding = decoder.decoding(tokens, lengths, max_new_tokens=5, prefill_chunk=3)
    assert decoder._kept.stepper is not stepper
    assert torch.equal(torch.stack(list(decoding), 1), generate_tokens(model, tokens, 5, lengths=lengths))


def test_bad_options_are_named() -> None:
    model, (tokens, _) = build(), prompts()
    with pytest.raises(InputError, match="prefill_chunk: expected a whole number from 1 on, was 0"):
        generate_tokens(model, tokens, 5, prefill_chunk=0)
    with pytest.raises(InputError, match=r"mode: expected one without CUDA graphs, .*, was 'reduce-overhead'"):
        compile_decoder(model, mode="reduce-overhead")
    with pytest.raises(InputError, match="top_k: expected a whole number from 1 on, was 0"):
        compiled(model).decoding(tokens, max_new_tokens=3, temperature=1.0, top_k=0)
