"""Converting and restoring in place, the report, every mixer, and what is refused."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, BloomConfig, BloomForCausalLM, T5Config, T5ForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import zoo
import zoo.hf
from zoo.errors import ConfigError, InputError

from .tiny import fresh, greedy, greedy_by_forward, padded, tiny, tokens

MIXERS = ("power", "gated-power", "linear", "gated-linear", "delta", "gated-delta", "sliding-window")


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_keeps_the_law(mixer: str) -> None:
    model, ids = fresh(mixer=mixer, **({"window": 5} if mixer == "sliding-window" else {})), tokens()
    expected = greedy_by_forward(lambda x: model(x, use_cache=False).logits, ids)
    rows, mask = padded(ids, [2, 2])
    assert torch.equal(greedy(model, ids), expected)
    assert torch.equal(greedy(model, rows, attention_mask=mask), expected)
    assert torch.equal(greedy(model, ids, prefill_chunk_size=4), expected)
    assert torch.equal(greedy(model, ids[:1], assistant_model=tiny("Llama")), expected[:1])
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_a_window_over_all_tokens_is_the_attention_that_was_there() -> None:
    model, ids = tiny("Llama"), tokens()
    expected = model(ids).logits
    zoo.hf.convert(model, "sliding-window", window=16)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_softmax_leaves_everything_as_it_is() -> None:
    model, ids = tiny("Llama"), tokens()
    expected = model(ids).logits
    report = zoo.hf.convert(model, "softmax")
    assert report.layers == ()
    assert torch.equal(model(ids).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Gemma3"])
def test_restored_is_what_it_was(architecture: str) -> None:
    model, ids = tiny(architecture), tokens()
    kind, config, expected = type(model), model.config, model(ids).logits
    zoo.hf.convert(model)
    zoo.hf.restore(model)
    assert type(model) is kind
    assert model.config.to_dict() == config.to_dict()
    assert torch.equal(model(ids).logits, expected)
    assert not any("gate" in name for name in model.state_dict() if "retention" in name)


@torch.no_grad()
def test_a_model_that_shares_the_config_stays_as_it_is() -> None:
    first, ids = tiny("Llama"), tokens()
    second = type(first)(first.config).eval()
    expected = second(ids).logits
    zoo.hf.convert(first)
    assert torch.equal(second(ids).logits, expected)


@torch.no_grad()
def test_setting_the_attention_does_not_bring_softmax_back() -> None:
    model, ids = fresh(), tokens()
    expected = model(ids).logits
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert torch.equal(model(ids).logits, expected)


@torch.no_grad()
def test_layers_that_are_not_named_keep_their_attention() -> None:
    model, whole, ids = tiny("Llama"), tiny("Llama"), tokens()
    zoo.hf.convert(model, layers=[2])
    found = model(ids, output_hidden_states=True).hidden_states
    kept = whole(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[2], kept[2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[3], kept[3], rtol=1e-2, atol=1e-2)


def test_the_report_counts_states_and_says_what_is_dropped() -> None:
    model = tiny("Gemma2", attn_logit_softcapping=30.0, attention_dropout=0.1)
    report = zoo.hf.convert(model)
    state = 3 * 2 * zoo.state_size(8, 2, offset=True) * (8 + 1) * 4  # layers, heads, rows of S and z, float32
    assert report.state_bytes == state
    assert report.cache_bytes_per_token == 3 * 2 * (8 + 8) * 4
    assert report.break_even == -(-state // report.cache_bytes_per_token)
    assert report.new_parameters == 3 * (2 * (32 + 1) + 4 + 4)  # of gates, offsets and scales
    assert report.dropped == (
        "a window of 6 tokens",
        "a soft cap of 30 on scores",
        "dropout of 0.1 on weights, in training",
    )
    assert "gated-power (p=2, offset=learned)" in str(report)
    assert "soft cap" in str(report)
    assert zoo.hf.report(model) == report


def test_converted_models_can_be_copied_and_pickled() -> None:
    model, ids = fresh(layers=[1]), tokens()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        with torch.no_grad():
            assert torch.equal(other(ids).logits, model(ids).logits)
        zoo.hf.restore(other)
    assert type(model).__name__ == "ZooLlamaForCausalLM"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_halves_stay_halves(dtype: torch.dtype) -> None:
    model, ids = tiny("Llama").to(dtype), tokens()
    zoo.hf.convert(model)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(ids).logits.dtype == dtype
    greedy(model, ids)


def _t5() -> nn.Module:
    return T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def _unreachable() -> nn.Module:
    return BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2))


def _quantised() -> nn.Module:
    model = tiny("Llama")
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="bitsandbytes"))
    return model


@pytest.mark.parametrize(
    ("model", "options", "line"),
    [
        (_t5, {}, "model: T5ForConditionalGeneration is an encoder-decoder"),
        (_unreachable, {}, "model: BloomForCausalLM has no attention that calls transformers' attention interface"),
        (_quantised, {}, "model: its weights are quantised by bitsandbytes"),
        (lambda: nn.Linear(2, 2), {}, "model: expected a model of transformers, was Linear"),
        (fresh, {}, "model: ZooLlamaForCausalLM is converted already"),
        (lambda: tiny("Llama"), {"layers": [3]}, "layers: expected indices from 0 to 2, was 3"),
        (lambda: tiny("GPT2", add_cross_attention=True), {}, "model: GPT2LMHeadModel is an encoder-decoder"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_left_alone(model: Any, options: dict[str, Any], line: str) -> None:
    made = model()
    kind, names = type(made), set(made.state_dict())
    with pytest.raises(InputError, match=line) as refused:
        zoo.hf.convert(made, **options)
    assert "\n" not in str(refused.value)
    assert type(made) is kind
    assert set(made.state_dict()) == names


def test_weights_that_were_unpacked_as_they_were_loaded_are_whole(tmp_path: Path) -> None:
    model = tiny("Llama")
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="gguf", dequantize=True))
    model.config.quantization_config = {"quant_method": "gguf"}
    zoo.hf.convert(model)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"mixer": "mamba2"}, "mixer: "),
        ({"p": 5}, "p: must be less than or equal to 4, got 5"),
        ({"mixer": "linear", "p": 2}, "p is an option of power, gated-power, not of linear"),
        ({"mixer": "power", "gate": (0.9, 0.99)}, "gate is an option of gated-power, gated-linear, gated-delta"),
        ({"p": 3, "normalize": True}, "normalize must be false for odd p=3"),
        ({"gate": (0.9, 1.0)}, "gate: must be two numbers in order, above 0 and below 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as refused:
        zoo.hf.convert(tiny("Llama"), **options)
    assert "\n" not in str(refused.value)


def test_a_state_over_the_limit_is_refused_by_its_layer() -> None:
    model = tiny("Llama")
    with zoo.state_limit(256), pytest.raises(InputError, match="layer 0: p: a state of p=2 with key width K=8"):
        zoo.hf.convert(model)
    assert type(model).__name__ == "LlamaForCausalLM"


def test_a_model_that_looks_ahead_is_refused() -> None:
    model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(InputError, match="model: BertModel attends in both directions; causal models"):
        zoo.hf.convert(model)


def test_restoring_what_was_not_converted_is_refused() -> None:
    with pytest.raises(InputError, match=r"model: expected one that zoo\.hf\.convert has converted, was Llama"):
        zoo.hf.restore(tiny("Llama"))


class _Deaf(LlamaDecoderLayer):
    """A layer that does not pass on what it is called with."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        kwargs.pop("zoo_resets")
        return super().forward(hidden_states, **kwargs)


class _Skipped(LlamaDecoderLayer):
    """A layer that does not ask its attention."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return hidden_states


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        (_Deaf, r"does not pass keyword arguments on to model\.layers\.1\.self_attn"),
        (_Skipped, r"does not use transformers' attention interface at model\.layers\.1\.self_attn"),
    ],
)
def test_attention_that_is_not_reached_is_refused_by_its_place(layer: type[nn.Module], line: str) -> None:
    model = tiny("Llama")
    model.model.layers[1].__class__ = layer
    with pytest.raises(InputError, match=line):
        zoo.hf.convert(model)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.model.layers[0].self_attn.config is model.config
