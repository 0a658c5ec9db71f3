"""Models whose heads several processes have together: outputs, gradients and steps are those of one process."""

from typing import Any

import pytest

from zoo.errors import ConfigError
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig
from zoo.models.head_shares import check_heads

from ..torchrun import run_together
from .head_shares import MODELS, MODES


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found; of four, two have the same heads."""
    every: list[dict[str, Any]] = run_together(
        request.param, "tests.models.head_shares", tmp_path_factory.mktemp("heads") / "found.json"
    )
    return every


@pytest.mark.parametrize("mode", [*MODES, "decoding"])
@pytest.mark.parametrize("model", MODELS)
def test_heads_together_are_one_model(found: list[dict[str, Any]], model: str, mode: str) -> None:
    for rank, one in enumerate(found):
        for what, error in one[f"{model}, {mode}"].items():
            assert error < (1e-6 if what == "loss" else 1e-10), f"process {rank}, {what}"  # a loss is float32


@pytest.mark.parametrize(
    ("mixer", "options", "model", "message"),
    [
        ("rwkv7", {}, {}, r"^mixer: expected one of whole heads .*, got rwkv7$"),
        ("softmax", {"query_key_norm": "whole"}, {}, r"^mixer\.query_key_norm: must not be `whole`"),
        ("softmax", {}, {"key_value_heads": 1}, r"^key_value_heads: must be a multiple of the 2 processes .*, got 1$"),
        ("softmax", {}, {"feed_forward_width": 7}, r"^feed_forward_width: must be a multiple of the 2 .*, got 7$"),
        ("softmax", {}, {"feed_forward": "rwkv7"}, r"^model\.feed_forward: must have hidden channels alone"),
        ("softmax", {}, {"around": "mamba2"}, r"^mixer: expected one of whole heads"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    mixer: str, options: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    config = DecoderConfig(**{"vocab_size": 31, "width": 16, "layers": 1, "heads": 4} | model)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        check_heads(Decoder(config, [mixers[mixer].config(**options)]), 2)
