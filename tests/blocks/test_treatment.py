"""What decays and what moves at another rate, by name, beside the lists of those who made each mixer."""

import re
from typing import ClassVar

import pytest
from torch import nn

from zoo.blocks.treatment import STEADY, Treatment, treatments
from zoo.builder import build, configure
from zoo.mixers import mixers
from zoo.models.block import Block

DECAYS = Treatment(decays=True)


def of_mixer(name: str, *overrides: str) -> dict[str, Treatment]:
    """How the mixer of the second layer is treated, in a model of several."""
    model = build(configure("tiny", mixer=name, overrides=[*overrides]), device="meta")
    prefix = "blocks.1.mixer."
    return {key.removeprefix(prefix): value for key, value in treatments(model).items() if key.startswith(prefix)}


def named(treated: dict[str, Treatment], treatment: Treatment) -> set[str]:
    return {name for name, found in treated.items() if found == treatment}


def test_rwkv7_as_in_its_authors_trainer() -> None:
    """There decay matrices called `weight`, and `att.w0` moves at twice the rate; thin matrices are not called so."""
    model = build("rwkv7-124m", overrides=["model.tie_embeddings=false", "model.layers=2"], device="meta")
    treated = treatments(model)
    kinds = {re.sub(r"blocks\.\d", "blocks.*", name) for name in named(treated, DECAYS)}
    mixing = {f"blocks.*.mixer.{matrix}.weight" for matrix in ("receptance", "key", "value", "output")}
    channels = {f"blocks.*.feed_forward.{matrix}.weight" for matrix in ("key", "value")}
    assert kinds == {"token_embedding.weight", "head.weight"} | mixing | channels
    offsets = {f"blocks.{layer}.mixer.decay.expand.bias" for layer in (0, 1)}
    assert named(treated, Treatment(decays=False, share=2.0)) == offsets
    assert named(treated, STEADY) == treated.keys() - named(treated, DECAYS) - offsets


def test_rwkv7_has_its_authors_epsilons() -> None:
    block = build("rwkv7-124m", device="meta").blocks[3]
    assert isinstance(block, Block)
    assert block.get_submodule("mixer.norm").eps == pytest.approx(64e-5, rel=1e-12)
    assert block.mixer_norm.eps == 1e-5


def test_mamba2_as_its_authors_mark_it() -> None:
    treated = of_mixer("mamba2")
    assert named(treated, STEADY) == {"log_decay", "step_bias", "skip", "convolution.bias", "norm.weight"}
    assert named(treated, DECAYS) == {"input.weight", "output.weight", "convolution.weight"}


@pytest.mark.parametrize("name", ["delta", "gated-delta", "kda", "delta-power"])
def test_delta_rules_as_their_authors_mark_them(name: str) -> None:
    treated = of_mixer(name)
    gates = {"gate.log_decay", "gate.step_bias"} if name != "delta" else set()
    biases = {"output.gate.1.bias"} if name == "kda" else set()
    assert named(treated, STEADY) == gates | biases | {"output.norm.weight"}
    assert {"input.weight", "convolution.weight", "rate.weight", "output.projection.weight"} <= named(treated, DECAYS)


def test_gates_of_channels() -> None:
    assert named(of_mixer("gla"), STEADY) == {"gate.1.bias", "output.norm.weight"}
    model = build(configure("tiny", mixer="hgrn2"), device="meta")
    assert treatments(model)["blocks.0.mixer.shares"] == STEADY


@pytest.mark.parametrize("name", mixers)
@pytest.mark.parametrize("backbone", ["gpt2-124m", "mamba2-130m", "rwkv7-124m"])
def test_no_norm_and_no_offset_decays(backbone: str, name: str) -> None:
    model = build(configure(backbone, mixer=name, overrides=["model.layers=2"]), device="meta")
    treated = treatments(model)
    assert treated.keys() == dict(model.named_parameters()).keys()
    for parameter in named(treated, DECAYS):
        assert parameter.endswith(".weight"), parameter
        assert "norm" not in parameter, parameter


def test_what_an_outer_module_says_goes_before() -> None:
    class Inner(nn.Module):
        treatments: ClassVar = {"weight": STEADY, "absent": STEADY}

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(nn.Linear(2, 2).weight.detach())

    class Outer(nn.Module):
        treatments: ClassVar = {"one.weight": Treatment(decays=True, share=3.0)}

        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = Inner(), Inner()

    assert treatments(Outer()) == {"one.weight": Treatment(decays=True, share=3.0), "other.weight": STEADY}
