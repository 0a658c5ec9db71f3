"""Models whose sequences several processes have together."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from zoo.budget.traffic import Received
from zoo.errors import ConfigError, InputError
from zoo.kernels.sequence import SequenceGroup
from zoo.mixers import mixers

from ..torchrun import run_together
from .shares import MODELS, MODES, batch, build, gradients


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    every: list[dict[str, Any]] = run_together(2, "tests.models.shares", tmp_path_factory.mktemp("shares") / "f.json")
    return every


@pytest.mark.parametrize("model", MODELS)
def test_loss_and_gradients_are_those_of_whole_sequences(found: list[dict[str, Any]], model: str) -> None:
    for rank, one in enumerate(found):
        for what, error in one[model].items():
            # A loss is float32, whatever its model is.
            assert error < (1e-6 if "loss" in what or what == "scores" else 1e-10), f"process {rank}, {what}"


@pytest.mark.parametrize("model", MODELS)
def test_prompts_read_together_in_pieces_leave_each_process_as_one_alone(
    found: list[dict[str, Any]], model: str
) -> None:
    for rank, one in enumerate(found):
        for what, error in one[f"prefill, {model}"].items():
            assert error < 1e-10, f"process {rank}, {what}"


@pytest.mark.parametrize("what", [*mixers, *(f"gated-power, {mode}" for mode in MODES)])
def test_what_is_sent_is_counted_without_sending(found: list[dict[str, Any]], what: str) -> None:
    for one in found:
        assert one["traffic"][what]["is"] == one["traffic"][what]["counted"]
        assert one["traffic"][what]["is"][0] > 0


@pytest.fixture
def alone() -> Iterator[SequenceGroup]:
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield SequenceGroup.of(dist.group.WORLD, "cpu")  # type: ignore[arg-type]
    dist.destroy_process_group()


@pytest.mark.parametrize("model", MODELS)
def test_selective_checkpointing_sends_nothing_again(alone: SequenceGroup, model: str) -> None:
    calls = {}
    for mode in MODES:
        decoder = build(model)
        decoder.share_sequences(alone)
        decoder.checkpoint(mode)
        with Received(2) as received:
            gradients(decoder, *batch(18))
        calls[mode] = received.calls.total()
    assert calls["none"] == calls["selective"] < calls["full"]


def test_a_mixer_that_takes_whole_sequences_is_refused_by_name(
    alone: SequenceGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixers["gla"].build, "halo", None)
    with pytest.raises(ConfigError, match=r"^training\.parallel\.context: must be 1 with mixer gla, which takes whole"):
        build("mamba").share_sequences(alone)


def test_lengths_are_those_of_whole_sequences(alone: SequenceGroup) -> None:
    model = build("gpt")
    model.share_sequences(alone._replace(size=3))
    with pytest.raises(InputError, match=r"^lengths: expected 0 to 27, the tokens given"):
        model(batch(9)[0], lengths=torch.tensor([3, 28]))
