"""Models whose heads several processes have together: outputs, gradients and steps are those of one process."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from zoo.errors import ConfigError, InputError
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig
from zoo.models.head_shares import check_heads
from zoo.models.stages import Stage

from ..torchrun import run_together
from .head_shares import MODELS, modes
from .stages import PIPELINES

QUICK = [(2, model, mode) for model in MODELS for mode in (*modes(model, quick=True), "decoding")]
EVERY = [(4, model, mode) for model in MODELS for mode in (*modes(model, quick=False), "decoding")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """Returns what each of so many processes found; of four, two have the same heads."""

    @functools.cache
    def run(count: int) -> list[dict[str, Any]]:
        result, which = tmp_path_factory.mktemp("heads") / "found.json", "quick" if count == 2 else "every"
        every: list[dict[str, Any]] = run_together(count, "tests.models.head_shares", result, which)
        return every

    return run


@pytest.mark.parametrize(
    ("processes", "model", "mode"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in EVERY)]
)
def test_heads_together_are_one_model(
    found: Callable[[int], list[dict[str, Any]]], processes: int, model: str, mode: str
) -> None:
    check(found(processes), f"{model}, {mode}")


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PIPELINES)
def test_layers_one_behind_the_other_are_one_model(
    found: Callable[[int], list[dict[str, Any]]], processes: int, name: str
) -> None:
    check(found(processes), name)


def check(found: list[dict[str, Any]], case: str) -> None:
    for rank, one in enumerate(found):
        for what, error in one[case].items():
            assert error < (1e-6 if what == "loss" else 1e-10), f"process {rank}, {what}"  # a loss is float32


@pytest.mark.parametrize(
    ("mixer", "options", "model", "message"),
    [
        (
            "rwkv7",
            {"head_width": 16},
            {},
            r"^training\.parallel\.tensor: must divide the 1 heads of mixer rwkv7",
        ),
        ("mamba2", {}, {}, r"^.*: must divide the 1 groups of mixer mamba2, got 2$"),
        ("gla", {"heads": 1}, {}, r"^.*: must divide the 1 key/value heads of mixer gla, got 2$"),
        ("softmax", {}, {"key_value_heads": 1}, r"^.*: must divide the 1 key/value heads of mixer softmax, got 2$"),
        ("softmax", {}, {"feed_forward_width": 7}, r"^.*: must divide the 7 channels of model\.feed_forward_width"),
        ("softmax", {}, {"feed_forward": "rwkv7", "feed_forward_width": 9}, r"^.*: must divide the 9 channels"),
        ("gla", {"heads": 1}, {"around": "mamba2"}, r"^.*: must divide the 1 key/value heads of mixer gla, got 2$"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    mixer: str, options: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    config = DecoderConfig(**{"vocab_size": 31, "width": 16, "layers": 1, "heads": 4} | model)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        check_heads(Decoder(config, [mixers[mixer].config(**options)]), 2)


def test_a_mixer_without_heads_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixers["gla"].build, "head_groups", None)
    config = DecoderConfig(vocab_size=31, width=16, layers=1, heads=4)
    with pytest.raises(ConfigError, match=r"^training\.parallel\.tensor: must be 1 with mixer gla, whose heads"):
        check_heads(Decoder(config, [mixers["gla"].config()]), 2)


@pytest.mark.parametrize(
    ("mixer", "tied", "stage", "message"),
    [
        ("softmax", True, (2, 0), r"^model\.tie_embeddings: must be false where layers stand on several processes"),
        ("hgrn2", False, (2, 1), r"^mixer: expected one whose layers stand by themselves in a pipeline, got hgrn2$"),
        ("softmax", False, (3, 0), r"^index, count: expected one of at most 2 stages, was 0 of 3$"),
        ("softmax", False, (2, 2), r"^index, count: expected one of .*, was 2 of 2$"),
    ],
)
def test_what_is_no_stage_is_refused(mixer: str, tied: bool, stage: tuple[int, int], message: str) -> None:
    config = DecoderConfig(vocab_size=31, width=16, layers=2, heads=4, tie_embeddings=tied)
    with pytest.raises((ConfigError, InputError), match=message):
        Stage(Decoder(config, [mixers[mixer].config()] * 2), *stage)


def test_a_later_stage_says_its_shapes_of_memory_that_nobody_has_written() -> None:
    """As schedules ask for them, at first; what comes then is looked at."""
    config = DecoderConfig(vocab_size=9, width=16, layers=2, heads=2, tie_embeddings=False)
    stage = Stage(Decoder(config, [mixers["gated-power"].config()] * 2), 2, 1)
    unwritten = torch.full((2, 5, 16), torch.nan)
    assert stage(unwritten).shape == (2, 5, 16)
    with pytest.raises(InputError, match="log_g: expected log gates of at most 0, found nan"):
        stage(unwritten)
