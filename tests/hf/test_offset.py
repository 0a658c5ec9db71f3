"""Offsets and scales of scores in converted models: what they compute, where they start, what files say of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

import zoo.hf
from zoo.errors import ConfigError

from .tiny import fresh, greedy, greedy_by_forward, tiny, tokens

P, OFFSET = 2, 0.7


def _explicit(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **_: Any) -> tuple[Tensor, None]:
    """Weights `(offset + s / p)^p` over their sum, as they are written."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    weights = (OFFSET + scaling / P * q @ k.mT).pow(P).tril()
    return (weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2), None


AttentionInterface.register("explicit_power", _explicit)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_weights_are_powers_of_offset_and_score(architecture: str) -> None:
    explicit, model, ids = tiny(architecture), tiny(architecture), tokens()
    explicit.set_attn_implementation("explicit_power")
    zoo.hf.convert(model, "power", p=P, offset=OFFSET)
    torch.testing.assert_close(model(ids).logits, explicit(ids).logits, rtol=1e-3, atol=1e-3)


def _of_scores(model: PreTrainedModel) -> dict[str, set[float]]:
    found: dict[str, set[float]] = {}
    for name, parameter in model.named_parameters():
        if "power_scores" in name:
            found.setdefault(name.split("power_scores.")[1], set()).update(parameter.tolist())
    return found


@pytest.mark.parametrize(
    ("options", "config", "learned"),
    [
        ({}, ("learned", "learned"), {"offset.value": {1.0}, "scale.value": {0.5}}),
        ({"offset": 1}, (1.0, 0.5), {}),
        ({"offset": 1, "scale": "learned"}, (1.0, "learned"), {"scale.value": {0.5}}),
        ({"offset": "learned", "scale": 1}, ("learned", 1.0), {"offset.value": {1.0}}),
        ({"offset": 0}, (0.0, 1.0), {}),
        ({"p": 3}, (0.0, 1.0), {}),
        ({"p": 1, "offset": "learned"}, ("learned", "learned"), {"offset.value": {1.0}, "scale.value": {1.0}}),
        ({"p": 4}, ("learned", "learned"), {"offset.value": {1.0}, "scale.value": {0.25}}),
    ],
)
def test_offsets_and_scales_start_near_softmax(options: Any, config: Any, learned: dict[str, set[float]]) -> None:
    model = fresh(**options)
    assert (model.config.zoo["offset"], model.config.zoo["scale"]) == config
    assert _of_scores(model) == learned


def test_the_report_says_which_offsets_have_no_kernels() -> None:
    found = [any("p=4 with an offset" in note for note in zoo.hf.report(fresh(p=4, offset=x)).notes) for x in (1, 0)]
    assert found == [True, False]


@pytest.mark.parametrize("options", [{"offset": 1}, {"p": 1, "offset": "learned"}, {"p": 3, "offset": 0.5}])
def test_every_offset_decodes_as_it_reads(options: dict[str, Any]) -> None:
    model, ids = fresh(**options), tokens()
    expected = greedy_by_forward(lambda x: model(x, use_cache=False).logits, ids)
    assert torch.equal(greedy(model, ids), expected)
    assert torch.equal(greedy(model, ids[:1], assistant_model=tiny("Llama")), expected[:1])


def test_what_was_learned_is_loaded(tmp_path: Path) -> None:
    model, ids = fresh(), tokens()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "power_scores" in name:
                parameter.add_(torch.linspace(0.1, 0.4, len(parameter)))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_config_that_does_not_know_offsets_has_none(tmp_path: Path) -> None:
    model, ids = fresh(offset=0), tokens()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["zoo"]["offset"], config["zoo"]["scale"]
    path.write_text(json.dumps(config))
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"offset": "free"}, "offset: must be a number or 'learned', got 'free'"),
        ({"scale": float("nan")}, "scale: must be a number or 'learned', got nan"),
        ({"mixer": "linear", "offset": 1}, "offset is an option of power, gated-power, not of linear"),
        ({"mixer": "softmax", "scale": "learned"}, "scale is an option of power, gated-power, not of softmax"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        zoo.hf.convert(tiny("Llama"), **options)
