"""Decoders that a model type of transformers cannot hold are refused, and nothing is written."""

from pathlib import Path

import pytest
import torch

import zoo
import zoo.hf
from zoo.errors import InputError

from .kinds import saved


@pytest.mark.parametrize(
    ("mixer", "overrides", "line"),
    [
        ("power", [], "a llama has the mixer softmax .* was power"),
        ("softmax", ["model.norm=layernorm"], "a llama has swiglu, rmsnorm and rotary positions"),
        ("softmax", ["mixer.query_key_norm=true"], "with query_key_norm=False in every layer"),
    ],
)
def test_models_that_are_no_llama_are_not_written(mixer: str, overrides: list[str], line: str, tmp_path: Path) -> None:
    style = ["model.feed_forward=swiglu", "model.norm=rmsnorm", "model.positions=rotary", *overrides]
    decoder = zoo.build(zoo.shrink(zoo.load_recipe("tiny")), mixer=mixer, overrides=style)
    with pytest.raises(InputError, match=line):
        zoo.hf.export_weights(decoder, tmp_path / "out", "llama")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "model_type", "line"),
    [
        ("smollm3", "llama", "a llama has the mixer softmax .* in every layer"),
        ("phi3, longrope of a part", "llama", "a llama has heads that turn whole, was rotary_share 0.75"),
        ("llama", "olmo", "a olmo has swiglu, layernorm and rotary positions"),
        ("llama, llama3", "phi3", "a phi3 has longrope scaling or none, was llama3"),
        ("llama, tied, with biases, wide heads", "phi3", "a phi3 has heads of width / heads, was 16"),
        ("granite", "llama", "a llama has no embedding_multiplier, was 3.0"),
        ("olmo2", "llama", "a llama has the mixer softmax with query_key_norm=False .* was softmax"),
        ("gemma", "llama", "a llama has swiglu, rmsnorm and rotary positions, was geglu, offset-rmsnorm, rotary"),
        (
            "gemma2, without caps",
            "gemma3_text",
            "a gemma3_text has the mixer softmax or sliding-window with query_key_",
        ),
        ("gemma3_text", "gemma2", "a gemma2 has the mixer softmax or sliding-window with query_key_norm=False"),
        ("llama", "gemma", "a gemma has geglu, offset-rmsnorm"),
        ("arcee", "llama", "a llama has swiglu, rmsnorm and rotary positions, was squared-relu"),
        ("phi", "starcoder2", "a starcoder2 has parallel False, was True"),
        ("starcoder2", "phi", "a phi has parallel True, was False"),
        ("gemma3_text, scaled, all full", "gemma", "a gemma has the mixer softmax with query_key_norm=False"),
        ("llama, tied, with biases, wide heads", "olmo2", "a olmo2 has the mixer softmax with query_key_norm=whole"),
        ("stablelm", "gpt_neox", "a gpt_neox has erf-gelu, layernorm and rotary positions, was swiglu"),
        ("starcoder2", "gpt2", "a gpt2 has gelu, layernorm, learned positions"),
        (
            "llama, tied, with biases, wide heads",
            "mistral",
            "expected zeros, the file's kind of model has no such bias",
        ),
    ],
)
def test_what_a_model_type_cannot_hold_is_not_written(kind: str, model_type: str, line: str, tmp_path: Path) -> None:
    saved(kind, tmp_path / "in")
    decoder = zoo.hf.import_weights(tmp_path / "in")
    with pytest.raises(InputError, match=line):
        zoo.hf.export_weights(decoder, tmp_path / "out", model_type)
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_norms_that_learned_are_no_olmo(tmp_path: Path) -> None:
    saved("olmo", tmp_path / "in")
    decoder = zoo.hf.import_weights(tmp_path / "in")
    decoder.norm.weight.add_(1)
    with pytest.raises(InputError, match=r"norm\.weight: expected ones"):
        zoo.hf.export_weights(decoder, tmp_path / "out", "olmo")


@pytest.mark.parametrize("kind", ["gpt2", "mamba2"])
def test_multipliers_are_in_no_model_that_knows_none(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    decoder = zoo.hf.import_weights(tmp_path)
    decoder.config = decoder.config.replace(residual_multiplier=0.5)
    with pytest.raises(InputError, match=f"a {kind} has no residual_multiplier, was 0.5"):
        zoo.hf.export_weights(decoder, tmp_path / "out", kind)
