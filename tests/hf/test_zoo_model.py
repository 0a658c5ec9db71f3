"""A zoo model as one of transformers: every mixer generates, and what users do to a model works."""

import functools
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import zoo
import zoo.hf
from zoo.blocks.rows import OrderedRows
from zoo.errors import InputError
from zoo.hf import ZooForCausalLM
from zoo.mixers import mixers
from zoo.training.run import load_run

from .tiny import greedy, greedy_by_forward, padded, tiny, tokens


def fresh(mixer: str, *overrides: str) -> ZooForCausalLM:
    torch.manual_seed(0)
    recipe = zoo.shrink(zoo.load_recipe("tiny"))
    model = zoo.build(recipe, mixer=mixer, overrides=["model.initializer_range=0.3", *overrides])
    return zoo.hf.to_hf(model.eval(), pad_token_id=256)


shared = functools.cache(fresh)


@pytest.mark.parametrize("mixer", mixers)
def test_every_mixer_generates_what_the_full_forward_says(mixer: str, tmp_path: Path) -> None:
    model, ids = shared(mixer), tokens()
    expected = greedy_by_forward(lambda x: model.decoder(x).logits, ids)
    rows, mask = padded(ids, [3, 3])
    assert torch.equal(greedy(model, ids), expected)
    assert torch.equal(greedy(model, rows, attention_mask=mask), expected)
    assert torch.equal(greedy(model, ids, prefill_chunk_size=4), expected)
    assert torch.equal(greedy(model, ids, use_cache=False), expected)
    assert torch.equal(greedy(model, ids[:1], assistant_model=shared("softmax")), expected[:1])
    assert torch.equal(greedy(model, ids, num_beams=3), greedy(model, ids, num_beams=3, use_cache=False))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_model_that_an_earlier_version_saved_is_the_same() -> None:
    model = AutoModelForCausalLM.from_pretrained(Path(__file__).parent / "data" / "grouped")
    _, wanted = load_run(Path(__file__).parent.parent / "training" / "data" / "grouped-in-parts")
    for (name, ours), theirs in zip(model.decoder.named_parameters(), wanted.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_model_with_channels_by_kind_is_the_same(tmp_path: Path) -> None:
    _, wanted = load_run(Path(__file__).parent.parent / "training" / "data" / "matrix-in-parts")
    model = zoo.hf.to_hf(wanted)
    now = {name: x.detach().clone() for name, x in model.named_parameters()}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, OrderedRows) and module.since == 2:
                for child, order in module.row_orders.items():
                    for parameter in module.get_submodule(child).parameters():
                        parameter.copy_(order.by_kind(parameter))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rows": "by key head"}))
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, x in found.named_parameters():
        assert torch.equal(x, now[name]), name
    (tmp_path / "config.json").write_text(json.dumps(config | {"rows": "by chance"}))
    with pytest.raises(InputError, match=r"^rows: expected one of None, by key head, by group, was 'by chance'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_rows_of_unequal_padding_are_those_alone() -> None:
    model, ids = shared("gated-power"), tokens()
    rows, mask = padded(ids, [3, 1])
    with torch.no_grad():
        found = model(rows, attention_mask=mask).logits
        for row, amount in enumerate([3, 1]):
            alone = model(ids[row : row + 1]).logits[0]
            torch.testing.assert_close(found[row, amount : amount + 9], alone, rtol=1e-3, atol=1e-3)


def test_a_softmax_cache_grows_token_by_token() -> None:
    model, ids = shared("softmax"), tokens(2, 20)
    with torch.no_grad():
        out = model(ids[:, :3], use_cache=True)
        parts = [out.logits]
        for t in range(3, 20):
            out = model(ids[:, t : t + 1], cache=out.cache)
            parts.append(out.logits)
        torch.testing.assert_close(torch.cat(parts, 1), model(ids, use_cache=False).logits, rtol=1e-3, atol=1e-3)
    assert out.cache.get_seq_length() == 20


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_resized_tied_or_not(tied: bool, tmp_path: Path) -> None:
    model, ids = fresh("power", f"model.tie_embeddings={str(tied).lower()}"), tokens()
    before = model(ids).logits
    model.resize_token_embeddings(270)
    assert model.config.vocab_size == model.decoder.config.vocab_size == 270
    after = model(torch.cat((ids, torch.full((2, 1), 269)), 1)).logits
    assert after.shape[-1] == 270
    torch.testing.assert_close(after[:, :9, :257], before, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert (model.get_output_embeddings() is None) == tied


def test_checkpointing_gives_the_same_gradients() -> None:
    model, ids = fresh("gated-power"), tokens()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    model.train()
    expected = gradients()
    model.activation_checkpointing_enable(every_n_layers=2)
    assert [block.checkpointing for block in model.decoder.blocks] == ["full", "none"]
    assert model.is_activation_checkpointing
    for one, other in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    model.activation_checkpointing_disable()
    assert [block.checkpointing for block in model.decoder.blocks] == ["none", "none"]


def test_the_loss_is_that_of_the_decoder() -> None:
    model, ids = shared("power"), tokens()
    expected = model.decoder.loss(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(model(ids, labels=ids).loss, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_adapters_find_every_linear_layer() -> None:
    adapted, ids = get_peft_model(fresh("gated-power"), LoraConfig(r=2, target_modules="all-linear")), tokens()
    adapted(input_ids=ids, labels=ids).loss.backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora" in name for name in trained)


def test_a_model_is_wrapped_and_not_copied() -> None:
    decoder = zoo.build(zoo.shrink(zoo.load_recipe("tiny")))
    assert zoo.hf.to_hf(decoder).decoder is decoder


def test_a_config_alone_builds_a_model(tmp_path: Path) -> None:
    fresh("mamba2").config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert model(tokens()).logits.isfinite().all()


def test_the_cache_of_another_model_is_refused() -> None:
    ids = tokens()
    cache = tiny("Llama")(ids, use_cache=True).cache
    with pytest.raises(InputError, match="cache: expected an empty one, or one that this model has filled"):
        shared("power")(ids, cache=cache)


def test_embeddings_in_place_of_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="inputs_embeds: expected None"):
        shared("power")(inputs_embeds=torch.zeros(1, 2, 16))
