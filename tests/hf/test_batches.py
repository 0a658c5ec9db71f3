"""What a recurrence has to know of a batch: padding, packing, pieces, and what it refuses."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from zoo.errors import InputError

from .tiny import converted, fresh, greedy, tokens


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gated", "power", "middle"])
def test_packed_rows_are_told_apart_by_their_positions(kind: str) -> None:
    model, first, second = converted("Llama", kind), tokens(1, 6), tokens(1, 8, seed=1)
    positions = torch.cat((torch.arange(6), torch.arange(8)))[None]
    packed = model(torch.cat((first, second), 1), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed[:, :6], model(first).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(packed[:, 6:], model(second).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gated", "middle"])
def test_a_prompt_may_come_in_pieces(kind: str) -> None:
    model, ids = converted("Llama", kind), tokens(2, 12)
    expected = model(ids, use_cache=False).logits
    for cache in (None, DynamicCache(), DynamicCache(config=model.config), StaticCache(model.config, 12)):
        made, parts = cache, []
        for piece in ids.split((5, 1, 4, 1, 1), 1):
            out = model(piece, cache=made, use_cache=True)
            made, parts = out.cache, [*parts, out.logits]
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-4)
        assert int(made.get_seq_length()) == 12


@torch.no_grad()
def test_a_conversation_goes_on_from_its_cache() -> None:
    model, ids = converted("Llama", "gated"), tokens()
    said = model.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    longer = torch.cat((said.sequences, tokens(2, 3, seed=5)), 1)
    assert torch.equal(greedy(model, longer, cache=said.cache), greedy(model, longer))


@torch.no_grad()
def test_a_prompt_may_be_embeddings() -> None:
    model, ids = converted("Llama", "gated"), tokens()
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embedded, max_new_tokens=6, do_sample=False), greedy(model, ids))


@torch.no_grad()
def test_padding_on_the_right_changes_no_real_token() -> None:
    model, ids = converted("Llama", "gated"), tokens()
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[:, 9:] = 0
    rows = torch.cat((ids, torch.zeros(2, 3, dtype=torch.long)), 1)
    found = model(rows, attention_mask=mask).logits[:, :9]
    torch.testing.assert_close(found, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_padding_inside_a_row_is_refused_by_name() -> None:
    model, ids = converted("Llama", "gated"), tokens()
    mask = torch.ones_like(ids)
    mask[1, 4] = 0
    with pytest.raises(InputError, match=r"attention_mask: expected padding only before .* between tokens in row 1"):
        model(ids, attention_mask=mask)


def test_padding_behind_a_prompt_is_refused_by_name() -> None:
    model, ids = converted("Llama", "gated"), tokens()
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    for options in ({}, {"cache_implementation": "static", "disable_compile": True}):
        with pytest.raises(InputError, match=r"behind the last token.*in row 0; set tokenizer\.padding_side = 'left'"):
            greedy(model, ids, attention_mask=mask, **options)


def test_a_mask_of_pairs_is_refused_by_name() -> None:
    model, ids = converted("Llama", "gated"), tokens()
    with pytest.raises(InputError, match=r"attention_mask: expected \[B, S\] with ones for real tokens"):
        model(ids, attention_mask=torch.ones(2, 1, 9, 9))


def test_a_cache_of_another_model_is_refused_by_name() -> None:
    model, other, ids = converted("Llama", "gated"), converted("Llama", "middle"), tokens()
    cache = other(ids, use_cache=True).cache
    with pytest.raises(InputError, match="cache: expected an empty one, or one that this model has filled"):
        model(ids, cache=cache)


@torch.no_grad()
def test_a_cache_gives_back_only_what_it_recorded() -> None:
    model, ids = converted("Llama", "gated"), tokens(2, 10)
    cache = model(ids[:, :6], use_cache=True).cache
    cache.activate_past_recording()
    model(ids[:, 6:9], cache=cache)
    cache.crop(-2)
    found = model(ids[:, 7:], cache=cache).logits
    torch.testing.assert_close(found, model(ids).logits[:, 7:], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="tokens_to_remove: expected from -3 to 0, was -4"):
        cache.crop(-4)


@torch.no_grad()
def test_rows_of_a_cache_are_repeated_and_chosen() -> None:
    model, ids = converted("Llama", "gated"), tokens(2, 8)
    cache = model(ids[:, :7], use_cache=True).cache
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([1, 3]))
    found = model(ids[:, 7:], cache=cache).logits
    torch.testing.assert_close(found, model(ids).logits[:, 7:], rtol=1e-4, atol=1e-4)


def test_static_states_stay_at_their_addresses() -> None:
    model, ids = converted("Llama", "gated"), tokens(2, 6)
    cache = StaticCache(model.config, 12)
    with torch.no_grad():
        model(ids, cache=cache)
        addresses = [part.data_ptr() for layer in cache.layers for part in layer.state]
        model(ids[:, :1], cache=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        model(ids[:, :3], cache=cache)
        cache.reset()
        again = model(ids, cache=cache).logits
        torch.testing.assert_close(again, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert [part.data_ptr() for layer in cache.layers for part in layer.state] == addresses


def test_gradients_flow_through_a_cache() -> None:
    model, ids = fresh(), tokens(2, 10)
    whole = model(ids, use_cache=False).logits.square().mean()
    expected = torch.autograd.grad(whole, list(model.parameters()))
    first = model(ids[:, :6], use_cache=True)
    logits = torch.cat((first.logits, *(model(ids[:, t : t + 1], cache=first.cache).logits for t in range(6, 10))), 1)
    found = torch.autograd.grad(logits.square().mean(), list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
