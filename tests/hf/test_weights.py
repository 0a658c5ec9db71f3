"""Weights of transformers' models in and out: the same logits, the same bits, and no key passed over."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import zoo
import zoo.hf
from zoo.errors import InputError

from .kinds import KINDS, ORIGINAL, ROPE, saved
from .tiny import tiny, tokens


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_imported_has_the_same_logits_and_goes_back_bit_by_bit(kind: str, tmp_path: Path) -> None:
    model, ids = saved(kind, tmp_path / "in"), tokens(2, 12)
    decoder = zoo.hf.import_weights(tmp_path / "in")
    logits = model(ids).logits
    torch.testing.assert_close(decoder(ids).logits, logits, rtol=0, atol=1e-6 * float(logits.abs().max()))

    zoo.hf.export_weights(decoder, tmp_path / "out", kind.split(",")[0])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again) is type(model)
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gpt2"])
@pytest.mark.parametrize("mixer", ["gated-power", "power", "linear", "sliding-window"])
def test_another_mixer_takes_over_what_the_file_holds(kind: str, mixer: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    decoder, own = zoo.hf.import_weights(tmp_path, mixer), zoo.hf.import_weights(tmp_path)
    weights, others = decoder.state_dict(), own.state_dict()
    assert all(torch.equal(weights[name], x) for name, x in others.items())
    assert all("gate" in name or "output.norm" in name for name in weights.keys() - others.keys())
    assert decoder(tokens()).logits.isfinite().all()
    assert decoder.mixer_configs[0].query_key_norm == (kind == "qwen3")


def test_converting_is_importing(tmp_path: Path) -> None:
    model, ids = saved("llama", tmp_path), tokens()
    decoder = zoo.hf.import_weights(tmp_path, "power")
    zoo.hf.convert(model, "power", offset=0)  # as the mixer has none unless it is asked for
    torch.testing.assert_close(decoder(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)


def test_the_dtype_stays_that_of_the_file(tmp_path: Path) -> None:
    tiny("Llama").bfloat16().save_pretrained(tmp_path)
    assert {p.dtype for p in zoo.hf.import_weights(tmp_path, "gated-power").parameters()} == {torch.bfloat16}


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"lm_head\.weight: expected floating weights that are not quantised"):
        zoo.hf.import_weights(tmp_path)


def test_sharded_files_are_read(tmp_path: Path) -> None:
    model, ids = tiny("Llama"), tokens()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    decoder = zoo.hf.import_weights(tmp_path)
    torch.testing.assert_close(decoder(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_gpt2_files_without_prefix_and_with_masks_are_read(tmp_path: Path) -> None:
    model, ids = saved("gpt2", tmp_path), tokens()
    weights = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): x for name, x in weights.items()}
    bare |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 4, 4) for layer in range(3)}
    save_file(bare, tmp_path / "model.safetensors")
    decoder = zoo.hf.import_weights(tmp_path)
    torch.testing.assert_close(decoder(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model_type": "lama"}, r"model_type: expected one of llama, .*, was 'lama' \(did you mean 'llama'\?\)"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', all that a zoo model can be, was 'gelu'"),
        ({"rope_parameters": {"rope_type": "axial"}}, "rope_type: expected one of default, .*, was 'axial'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters: factor: missing"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 1}}, "beta_fast: unknown key for the"),
        ({"rope_parameters": 3}, "rope_parameters: expected a mapping, was 3"),
        ({"partial_rotary_factor": 1.5}, r"partial_rotary_factor: expected 1\.0, all .*, was 1\.5"),
        ({"logit_scale": 2.0}, "logit_scale: unknown key"),
        ({"hidden_size": None}, "hidden_size: missing"),
        ({"vocab_size": 47}, r"model\.embed_tokens\.weight: expected \[47, 32\] in all"),
    ],
)
def test_settings_that_a_zoo_model_cannot_have_are_refused(change: dict[str, Any], line: str, tmp_path: Path) -> None:
    saved("llama", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=line) as refused:
        zoo.hf.import_weights(tmp_path)
    assert "\n" not in str(refused.value)


SOFT_CAP = {"final_logit_softcapping": 30.0}
SCALED = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}}
OTHER = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}, "chunked_attention": {}}


@pytest.mark.parametrize(
    ("kind", "change", "line"),
    [
        ("gemma3_text", SOFT_CAP, "final_logit_softcapping: expected none, all that a zoo model can be, was 30.0"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: expected none, .*, was 50.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected False"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, "layer_types: expected 3 of .*, was "),
        ("gemma3_text", {"layer_types": ["chunked"] * 3}, "layer_types: expected 3 of .*, was "),
        ("gemma3_text", {"rope_parameters": SCALED}, "sliding_attention.rope_type: expected 'default', .* 'linear'"),
        ("gemma3_text", {"rope_parameters": OTHER}, "rope_parameters.chunked_attention: unknown key"),
        (
            "gemma",
            {"hidden_act": "silu"},
            "hidden_act: expected 'gelu_pytorch_tanh' or 'gelu_new' or 'gelu', .* 'silu'",
        ),
        ("gpt_neox", {"hidden_act": "gelu_fast"}, "hidden_act: expected 'gelu', all that .*, was 'gelu_fast'"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm: expected False, .*, was True"),
        ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual: expected False, .*, was True"),
        *((kind, {"logit_scale": 2.0}, "logit_scale: unknown key") for kind in ("olmo2", "gemma3_text", "gpt_neox")),
    ],
)
def test_other_settings_of_a_model_type_are_refused(
    kind: str, change: dict[str, Any], line: str, tmp_path: Path
) -> None:
    saved(kind, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=line):
        zoo.hf.import_weights(tmp_path)


@torch.no_grad()
def test_older_files_of_gpt_neox_and_gemma3_are_read(tmp_path: Path) -> None:
    saved("gpt_neox", tmp_path / "neox")
    values = json.loads((tmp_path / "neox" / "config.json").read_text())
    expected = zoo.hf.import_weights(tmp_path / "neox").config
    del values["rope_parameters"]
    for older in ({"rotary_pct": 0.25, "rotary_emb_base": 10000}, {}):
        (tmp_path / "neox" / "config.json").write_text(json.dumps(values | older))
        assert zoo.hf.import_weights(tmp_path / "neox").config == expected

    saved("gemma3_text", tmp_path / "gemma")
    values = json.loads((tmp_path / "gemma" / "config.json").read_text())
    del values["rope_parameters"], values["layer_types"], values["_sliding_window_pattern"]
    values |= {"sliding_window_pattern": 2, "rope_local_base_freq": 500.0, "rope_theta": 1e5}
    values |= {"cache_implementation": "hybrid", "sliding_window_size": 6, "hidden_act": "gelu_pytorch_tanh"}
    (tmp_path / "gemma" / "config.json").write_text(json.dumps(values))
    decoder = zoo.hf.import_weights(tmp_path / "gemma")
    assert [mixer.name for mixer in decoder.mixer_configs] == ["sliding-window", "softmax", "sliding-window"]
    assert [mixer.rotary_base for mixer in decoder.mixer_configs] == [500.0, None, 500.0]
    assert decoder.config.rotary_base == 1e5


@torch.no_grad()
def test_one_norm_of_a_file_is_one_norm(tmp_path: Path) -> None:
    saved("phi", tmp_path / "in")
    decoder = zoo.hf.import_weights(tmp_path / "in")
    decoder.blocks[1].feed_forward_norm.weight.add_(1)
    with pytest.raises(InputError, match=r"blocks\.1\.feed_forward_norm\.weight: expected the same as .*mixer_norm"):
        zoo.hf.export_weights(decoder, tmp_path / "out", "phi")
    decoder = zoo.hf.import_weights(tmp_path / "in")
    decoder.config = decoder.config.replace(tie_embeddings=False, head_bias=False)
    with pytest.raises(InputError, match="a phi has head_bias True, was False"):
        zoo.hf.export_weights(decoder, tmp_path / "out", "phi")


@pytest.mark.parametrize("kind", ["olmo2", "gemma3_text", "gpt_neox", "phi"])
def test_power_attention_takes_over_the_weights_of_other_blocks(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    decoder, own = zoo.hf.import_weights(tmp_path, "gated-power"), zoo.hf.import_weights(tmp_path)
    weights, others = decoder.state_dict(), own.state_dict()
    assert all(torch.equal(weights[name], x) for name, x in others.items())
    assert all("gate" in name for name in weights.keys() - others.keys())
    assert decoder(tokens()).logits.isfinite().all()


def test_weights_that_are_missing_or_unknown_are_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"model.layers.0.extra": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.layers\.0\.extra: unknown weight"):
        zoo.hf.import_weights(tmp_path)
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.norm\.weight: missing"):
        zoo.hf.import_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be read"):
        zoo.hf.import_weights(tmp_path)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"found pytorch_model\.bin, which would be executed"):
        zoo.hf.import_weights(tmp_path)


def test_an_index_names_only_files_of_its_folder(tmp_path: Path) -> None:
    saved("llama", tmp_path / "in")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"weight_map: expected names of files in the folder, was '\.\./elsewhere"):
        zoo.hf.import_weights(tmp_path / "in")


def test_mixers_without_heads_of_attention_are_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    with pytest.raises(InputError, match=r"mixer: expected one with projections to heads, .*, was 'mamba2'"):
        zoo.hf.import_weights(tmp_path, "mamba2")


@torch.no_grad()
def test_rotary_positions_of_older_files_are_read(tmp_path: Path) -> None:
    saved("llama, llama3", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    parameters = values.pop("rope_parameters")
    values |= {"rope_theta": parameters.pop("rope_theta"), "rope_scaling": parameters}
    decoder = zoo.hf.import_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert zoo.hf.import_weights(tmp_path).config == decoder.config
    parameters["type"] = parameters.pop("rope_type")
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert zoo.hf.import_weights(tmp_path).config == decoder.config


@pytest.mark.parametrize("kind", ["qwen3, longrope", "mistral, dynamic"])
@torch.no_grad()
def test_a_longer_context_is_what_the_model_is_made_for(kind: str, tmp_path: Path) -> None:
    changes = {"max_position_embeddings": 16} if "dynamic" in kind else {}
    architecture, others = KINDS[kind]
    model, ids = tiny(architecture, **others, **changes), tokens(2, 24)
    model.save_pretrained(tmp_path)
    decoder = zoo.hf.import_weights(tmp_path, context_length=24)
    torch.testing.assert_close(decoder(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    short = zoo.hf.import_weights(tmp_path)
    assert not torch.allclose(short(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(short(ids[:, :12]).logits, model(ids[:, :12]).logits, rtol=1e-4, atol=1e-4)


def test_the_attention_factor_of_two_scales_is_their_quotient(tmp_path: Path) -> None:
    model = tiny(
        "Llama",
        rope_parameters=ROPE | ORIGINAL | {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 0.5},
    )
    model.save_pretrained(tmp_path)
    decoder = zoo.hf.import_weights(tmp_path)
    assert decoder.config.rotary_scaling is not None
    assert decoder.config.rotary_scaling.amplitude == model.model.rotary_emb.attention_scaling


@pytest.mark.parametrize("mixer", ["softmax", "gated-power"])
def test_layers_that_do_not_turn_stay_so_with_another_mixer(mixer: str, tmp_path: Path) -> None:
    saved("smollm3", tmp_path)
    decoder = zoo.hf.import_weights(tmp_path, mixer)
    assert [config.rotary for config in decoder.mixer_configs] == [None, False, None]
    values = json.loads((tmp_path / "config.json").read_text()) | {"no_rope_layers": None, "no_rope_layer_interval": 3}
    (tmp_path / "config.json").write_text(json.dumps(values))
    decoder = zoo.hf.import_weights(tmp_path, mixer)
    assert [config.rotary for config in decoder.mixer_configs] == [None, None, False]
    (tmp_path / "config.json").write_text(json.dumps(values | {"no_rope_layers": [1, 0]}))
    with pytest.raises(InputError, match="no_rope_layers: expected 3 values, was 2"):
        zoo.hf.import_weights(tmp_path, mixer)


DECODED = ["llama, llama3", "smollm3", "phi3", "olmo", "granite", "starcoder2", "mamba2"]
DECODED += ["olmo2", "arcee", "gemma", "gemma2", "gemma3_text, scaled, untied", "stablelm", "gpt_neox", "phi"]


@pytest.mark.parametrize("kind", DECODED)
@torch.no_grad()
def test_decoding_takes_the_same_tokens(kind: str, tmp_path: Path) -> None:
    model, ids = saved(kind, tmp_path), tokens(1, 8)
    decoder = zoo.hf.import_weights(tmp_path)
    state = decoder.init_state(1, max_len=20)
    logits = [decoder.step(ids[:, t], state) for t in range(ids.shape[1])][-1]
    for _ in range(8):
        taken = logits.argmax(-1)
        assert torch.equal(taken, model(ids).logits[:, -1].argmax(-1))
        ids, logits = torch.cat((ids, taken[:, None]), 1), decoder.step(taken, state)


@torch.no_grad()
def test_powercoder_is_starcoder2_with_gated_power(tmp_path: Path) -> None:
    model, ids = saved("starcoder2", tmp_path), tokens(2, 12)
    zoo.hf.convert(model, "gated-power", p=2, offset=0)  # as published
    weights = load_file(tmp_path / "model.safetensors")
    for layer, block in enumerate(model.model.layers):
        for name, x in block.self_attn.named_parameters():
            if "gate" in name:
                x.add_(torch.randn_like(x))
                kind = name.rsplit(".", 1)[-1]
                weights[f"model.layers.{layer}.self_attn.g_proj.{kind}"] = x.clone()
    save_file(weights, tmp_path / "model.safetensors")
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {"model_type": "powercoder", "chunk_size": 64, "prefill_chunk_size": 1024, "switch_over_seq_len": 2048}
    (tmp_path / "config.json").write_text(json.dumps(values | {"auto_map": {"AutoConfig": "code.Config"}}))
    decoder = zoo.hf.import_weights(tmp_path)
    assert {(each.name, each.p) for each in decoder.mixer_configs} == {("gated-power", 2)}
    torch.testing.assert_close(decoder(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    zoo.hf.export_weights(decoder, tmp_path / "out", "powercoder")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == after.keys()
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    with pytest.raises(InputError, match=r"a starcoder2 has the mixer softmax or sliding-window .* was gated-power"):
        zoo.hf.export_weights(decoder, tmp_path / "other", "starcoder2")


@torch.no_grad()
def test_mamba2_is_read_under_its_authors_name_too(tmp_path: Path) -> None:
    model, ids = saved("mamba2", tmp_path), tokens(1, 9)
    weights = load_file(tmp_path / "model.safetensors")
    weights["backbone.embedding.weight"] = weights.pop("backbone.embeddings.weight")
    save_file(weights, tmp_path / "model.safetensors")
    decoder = zoo.hf.import_weights(tmp_path)
    torch.testing.assert_close(decoder(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"mixer: expected none, as this model has mamba2 .*, was 'power'"):
        zoo.hf.import_weights(tmp_path, "power")
