"""Distillation: what is trained, what stays, adapters that are merged, resumption, what is refused."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import zoo.hf
from zoo.data import Batches, validation_batches
from zoo.errors import CheckpointError, ConfigError, InputError
from zoo.hf.stages.distill import divergence
from zoo.hf.stages.reading import logits_of, perplexity

from ..tiny import fresh, tiny, tokens
from .following import StopAfter, StoppedError, stage, text

GENTLE = {"learning_rate": 1e-3, "steps": 24}


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _distance(model: PreTrainedModel, teacher: PreTrainedModel) -> float:
    corpus = text()
    with torch.no_grad():
        batch = Batches(corpus.train, 16, 16, 1).batch(0)
        return float(divergence(logits_of(model, batch), logits_of(teacher, batch)))


@pytest.mark.parametrize("train", ["attention", "lora", "all"])
@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_the_teacher_is_followed_and_only_what_was_chosen_changes(architecture: str, train: Any) -> None:
    changes = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0} if architecture == "GPT2" else {}
    teacher, model = tiny(architecture, **changes), tiny(architecture, **changes)
    zoo.hf.convert(model, layers=[0, 2], offset=0, gate=(0.1, 0.3))  # far from softmax
    before, far, teachers = _values(model), _distance(model, teacher), _values(teacher)
    result = zoo.hf.distill(model, teacher, text(), stage(**GENTLE), train=train)
    assert _distance(model, teacher) < far
    after = _values(model)
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    inside = {name for name in before if ".attn." in name or ".self_attn." in name}
    converted = {name for name in inside if ".1." not in name}
    if train == "attention":
        assert changed <= converted
        assert len(changed) > len(converted) / 2
    elif train == "lora":
        biases = {name for name in converted if name.endswith("bias") and "gate" not in name}
        assert changed <= converted - biases
        assert result.trained_parameters > sum(before[n].numel() for n in changed if "gate" in n)
    else:
        assert changed - inside
    assert all(torch.equal(value, teachers[name]) for name, value in teacher.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in [*model.parameters(), *teacher.parameters()])
    assert not model.training
    assert not teacher.training


def test_perplexities_are_told_beside_the_teachers() -> None:
    teacher, model, corpus = tiny("Llama"), fresh(), text()
    held_back = validation_batches(corpus.validation, 4, 16, 128)
    before = perplexity(model, held_back, None)
    result = zoo.hf.distill(model, teacher, corpus, stage(steps=2))
    assert result.perplexity_before == pytest.approx(before)
    assert result.perplexity_after == pytest.approx(perplexity(model, held_back, None))
    assert result.teacher_perplexity == pytest.approx(perplexity(teacher, held_back, None))


@torch.no_grad()
def test_packed_documents_do_not_see_each_other() -> None:
    corpus = text()
    batch = Batches(corpus.train, 2, 24, 0).batch(0)
    for model in (tiny("Llama"), fresh()):
        whole = logits_of(model, batch)
        for row in range(2):
            starts = [0, *(int(x) for x in batch.resets[row].nonzero()[:, 0] if x > 0), 24]
            for start, stop in pairwise(starts):
                alone = model(batch.tokens[row : row + 1, start:stop]).logits
                torch.testing.assert_close(whole[row : row + 1, start:stop], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_divergence_is_in_nats_and_nothing_from_oneself() -> None:
    found, followed = torch.randn(2, 3, 5).double(), torch.randn(2, 3, 5).double()
    p, q = followed.softmax(-1), found.softmax(-1)
    torch.testing.assert_close(divergence(found, followed), (p * (p / q).log()).sum(-1).mean())
    assert float(divergence(found, found)) == 0


@pytest.mark.parametrize("train", ["attention", "lora"])
def test_stopped_and_gone_on_with_is_as_if_never_stopped(tmp_path: Path, train: Any) -> None:
    whole, stopped, resumed = fresh("GPT2"), fresh("GPT2"), fresh("GPT2")  # which has dropout
    teacher, expected_type = tiny("GPT2"), type(whole)
    expected = zoo.hf.distill(whole, teacher, text(), stage(), train=train)
    before = _values(stopped)
    with pytest.raises(StoppedError):
        zoo.hf.distill(stopped, teacher, text(), stage(), train=train, folder=tmp_path, progress=StopAfter(6))
    assert _values(stopped).keys() == before.keys()
    found = zoo.hf.distill(resumed, teacher, text(), stage(), train=train, folder=tmp_path)
    assert dataclasses.replace(found, seconds=0) == dataclasses.replace(expected, seconds=0)
    assert type(resumed) is expected_type
    for name, parameter in whole.named_parameters():
        assert torch.equal(resumed.get_parameter(name), parameter)


def test_both_stages_are_in_one_file_and_the_model_is_saved_as_any(tmp_path: Path) -> None:
    model, ids = fresh(), tokens()
    zoo.hf.transfer(model, text(), stage(steps=2), folder=tmp_path)
    zoo.hf.distill(model, tiny("Llama"), text(), stage(steps=2), train="lora", folder=tmp_path)
    written = json.loads((tmp_path / "stages.json").read_text())
    assert list(written) == ["transfer", "distill"]
    assert written["distill"]["settings"]["train"] == "lora"
    assert written["distill"]["perplexity_before"] == pytest.approx(written["transfer"]["perplexity_after"])
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def _itself(model: PreTrainedModel) -> Any:
    return model


@pytest.mark.parametrize(
    ("teacher", "options", "error", "line"),
    [
        (_itself, {}, InputError, "teacher: expected a model with weights of its own"),
        (lambda _: nn.Linear(2, 2), {}, InputError, "teacher: expected a model of transformers, was Linear"),
        (lambda _: tiny("Llama", vocab_size=64), {}, InputError, "teacher: expected the model's vocabulary of 48 ids"),
        (lambda _: tiny("Llama"), {"train": "heads"}, ConfigError, "train: expected one of attention, lora, all"),
    ],
)
def test_what_cannot_be_followed_is_refused(teacher: Any, options: Any, error: Any, line: str) -> None:
    model = fresh()
    with pytest.raises(error, match=line):
        zoo.hf.distill(model, teacher(model), text(), stage(), **options)


def test_parts_of_a_step_are_averaged() -> None:
    whole, parts = fresh(), fresh()
    parts.load_state_dict(whole.state_dict())
    zoo.hf.distill(whole, tiny("Llama"), text(), stage(steps=2, clip_norm=None, autocast="none"))
    zoo.hf.distill(parts, tiny("Llama"), text(), stage(steps=2, batch_size=2, accumulate=2, clip_norm=None))
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(parts.get_parameter(name), parameter, rtol=1e-2, atol=1e-3)


def test_another_teacher_in_the_folder_is_refused(tmp_path: Path) -> None:
    zoo.hf.distill(fresh(), tiny("Llama"), text(), stage(steps=2), folder=tmp_path)
    other = tiny("Llama")
    with torch.no_grad():
        other.get_input_embeddings().weight[3, 3] += 1
    with pytest.raises(CheckpointError, match="holds this stage with other settings"):
        zoo.hf.distill(fresh(), other, text(), stage(steps=2), folder=tmp_path)
