"""Converted models as models of the zoo: the same logits, from which everything that takes a decoder follows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
import zoo.hf
from zoo.errors import ConfigError, InputError

from .tiny import tiny, tokens

CONVERSIONS: dict[str, dict[str, Any]] = {
    "gated power": {"mixer": "gated-power"},
    "power without an offset": {"mixer": "power", "offset": 0.0, "scale": "learned"},
    "gated power, numbers": {"mixer": "gated-power", "offset": 1.5, "scale": 0.25},
    "gated power, p = 4, a learned scale": {"mixer": "gated-power", "p": 4, "offset": 1.0, "scale": "learned"},
    "power, a learned offset": {"mixer": "power", "offset": "learned", "scale": 0.5},
    "a window": {"mixer": "sliding-window", "window": 5},
    "gated power, last layer": {"mixer": "gated-power", "layers": [2]},
}


def converted(name: str, options: dict[str, Any], folder: Path) -> Any:
    """A converted model whose new parameters are not what they start with, also as a folder."""
    model = tiny(name)
    zoo.hf.convert(model, **options)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "power_scores" in key or "retention_gate.weight" in key:
                parameter.add_(torch.rand_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("options", CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "GPT2"])
def test_a_converted_model_has_the_same_logits(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = converted(name, options, tmp_path)
    decoder = zoo.hf.import_weights(tmp_path)
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(decoder(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


def test_it_generates_the_same(tmp_path: Path) -> None:
    model = converted("Llama", {"mixer": "gated-power"}, tmp_path)
    ids = tokens()
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    decoder, found = zoo.hf.import_weights(tmp_path), []
    with torch.no_grad():
        logits, state = decoder(ids, decoder.init_state(2), True)
        following = logits[:, -1].argmax(-1)
        for _ in range(12):
            found.append(following)
            following = decoder.step(following, state).argmax(-1)
    torch.testing.assert_close(torch.stack(found, 1), expected[:, ids.shape[1] :])


def test_other_conversions_are_refused_by_name(tmp_path: Path) -> None:
    converted("Llama", {"mixer": "gated-delta"}, tmp_path)
    with pytest.raises(
        InputError, match=r"config.json: zoo: expected a conversion to power attention .*was gated-delta"
    ):
        zoo.hf.import_weights(tmp_path)


def test_a_damaged_conversion_is_told(tmp_path: Path) -> None:
    converted("Llama", {"mixer": "gated-power"}, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["zoo"]["p"] = "two"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"config.json: zoo: p: "):
        zoo.hf.import_weights(tmp_path)
