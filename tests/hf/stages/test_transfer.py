"""Transfer: what a conversion added follows the attention that was there, and nothing else changes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo.hf
from zoo.data import validation_batches
from zoo.errors import CheckpointError, ConfigError, CorpusError, InputError
from zoo.hf.stages.reading import perplexity
from zoo.hf.stages.transfer import new_parameters, watched

from ..tiny import fresh, tiny, tokens
from .following import Lines, StopAfter, StoppedError, stage, text


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Gemma3", "GPTNeoX", "SmolLM3"])
def test_what_is_followed_is_the_attention_that_was_there(architecture: str) -> None:
    model, ids = tiny(architecture), tokens()
    expected = model(ids).logits
    zoo.hf.convert(model)
    with watched(model, lambda _own, softmax: softmax()):
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(ids).logits, expected, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_soft_caps_and_windows_are_followed_too() -> None:
    model, ids = tiny("Gemma2", attn_logit_softcapping=2.0, attn_implementation="eager"), tokens(length=14)
    expected = model(ids).logits
    zoo.hf.convert(model)
    with watched(model, lambda _own, softmax: softmax()):
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"mixer": "power"}, {"mixer": "gated-delta"}, {"p": 1}, {"layers": [1]}])
def test_losses_fall_and_only_new_parameters_change(options: dict[str, Any]) -> None:
    model = fresh(**options)
    before, new = _values(model), new_parameters(model)
    with torch.no_grad():
        for name in new:
            if name.endswith("power_scores.scale.value"):
                model.get_parameter(name).fill_(3)  # further from softmax than they start
    lines = Lines()
    result = zoo.hf.transfer(model, text(), stage(steps=24, learning_rate=0.1), progress=lines)
    after = _values(model)
    assert result.losses[-1][1] < result.losses[0][1]
    assert {name for name in before if not torch.equal(before[name], after[name])} == new
    assert result.trained_parameters == sum(before[name].numel() for name in new)
    assert [(line["step"], line["loss"]) for line in lines.told] == result.losses
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def test_the_teachers_perplexity_is_that_of_the_model_before() -> None:
    before, model, corpus, settings = tiny("Llama"), fresh(), text(), stage(steps=2)
    result = zoo.hf.transfer(model, corpus, settings)
    held_back = validation_batches(corpus.validation, 4, 16, 128)
    assert result.teacher_perplexity == pytest.approx(perplexity(before, held_back, None), rel=1e-4)
    assert result.perplexity_after == pytest.approx(perplexity(model, held_back, None))
    assert result.perplexity_before == pytest.approx(perplexity(fresh(), held_back, None), rel=0.2)
    assert result.evaluation_tokens == 128
    assert "(teacher " in str(result)


@pytest.mark.parametrize("steps", [6, 12])
def test_stopped_and_gone_on_with_is_as_if_never_stopped(tmp_path: Path, steps: int) -> None:
    whole, stopped, resumed = fresh(), fresh(), fresh()
    with torch.no_grad():
        for name in new_parameters(resumed):
            resumed.get_parameter(name).add_(0.1)  # which the checkpoint's values replace
    expected = zoo.hf.transfer(whole, text(), stage())
    with pytest.raises(StoppedError):
        zoo.hf.transfer(stopped, text(), stage(), folder=tmp_path, progress=StopAfter(steps))
    found = zoo.hf.transfer(resumed, text(), stage(), folder=tmp_path)
    assert dataclasses.replace(found, seconds=0) == dataclasses.replace(expected, seconds=0)
    for name, parameter in whole.named_parameters():
        assert torch.equal(resumed.get_parameter(name), parameter)


def test_results_are_one_file(tmp_path: Path) -> None:
    result = zoo.hf.transfer(fresh(), text(), stage(steps=3), folder=tmp_path)
    (written,) = json.loads((tmp_path / "stages.json").read_text()).values()
    assert written["stage"] == "transfer"
    assert written["teacher_perplexity"] == result.teacher_perplexity
    assert written["settings"]["learning_rate"] == 1e-2


def test_another_stage_in_the_folder_is_refused(tmp_path: Path) -> None:
    zoo.hf.transfer(fresh(), text(), stage(steps=3), folder=tmp_path)
    for other, corpus, settings in (
        ("settings", text(), stage(steps=4)),
        ("corpus", text(seed=1), stage(steps=3)),
    ):
        with pytest.raises(CheckpointError, match=f"holds this stage with other {other}"):
            zoo.hf.transfer(fresh(), corpus, settings, folder=tmp_path)
    other_weights = fresh()
    with torch.no_grad():
        other_weights.get_input_embeddings().weight[3, 3] += 1
    with pytest.raises(CheckpointError, match="holds this stage with other weights"):
        zoo.hf.transfer(other_weights, text(), stage(steps=3), folder=tmp_path)
    with pytest.raises(CheckpointError, match="holds this stage with other conversion"):
        zoo.hf.transfer(fresh(gate=(0.5, 0.9)), text(), stage(steps=3), folder=tmp_path)


@pytest.mark.parametrize(
    ("model", "changes", "line"),
    [
        (lambda: tiny("Llama"), {}, "model: expected one that zoo.hf.convert has converted"),
        (lambda: fresh(mixer="power", offset=0), {}, "model: its conversion has no parameters of its own"),
        (lambda: fresh().bfloat16(), {}, "model: expected float32 weights to train, .* was bfloat16"),
        (fresh, {"context_length": 65}, "context_length: expected at most the model's 64 positions, was 65"),
    ],
)
def test_what_cannot_be_trained_is_refused(model: Any, changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=line):
        zoo.hf.transfer(model(), text(), stage(**changes), folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="warmup_steps 13 must not be above steps 12"):
        zoo.hf.transfer(fresh(), text(), stage(warmup_steps=13))
    with pytest.raises(ConfigError, match="step"):
        zoo.hf.Stage(step=3)
    with pytest.raises(InputError, match="folder: expected the path of a folder"):
        zoo.hf.transfer(fresh(), text(), stage(), folder="")


def test_a_text_that_is_too_short_or_of_other_ids_is_refused() -> None:
    with pytest.raises(InputError, match="corpus: expected ids below the model's 48, was of 49"):
        zoo.hf.transfer(fresh(), dataclasses.replace(text(), vocab_size=49), stage())
    short = text()
    with pytest.raises(CorpusError, match="too few for context_length"):
        zoo.hf.transfer(
            fresh(), dataclasses.replace(short, train=short.train.part(0, 9, name="training data")), stage()
        )


@pytest.mark.parametrize("options", [{}, {"mixer": "gated-delta"}, {"p": 1}])
def test_products_in_bfloat16_train_float32_weights(options: dict[str, Any]) -> None:
    model = fresh(**options)
    before = _values(model)
    zoo.hf.transfer(model, text(), stage(steps=3, autocast="bfloat16"))
    result = zoo.hf.distill(model, tiny("Llama").bfloat16(), text(), stage(steps=3, autocast="bfloat16"), train="all")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert result.perplexity_after == pytest.approx(result.teacher_perplexity, rel=0.5)
