"""Sizes: every one has a bound, and what is beyond it, or more than can be counted, is one line that names it."""

from typing import get_args

import pytest

from zoo.accounting import account
from zoo.errors import ConfigError, InputError
from zoo.limits import LONGEST, WIDEST_HEAD
from zoo.mixers import mixers
from zoo.recipe import Hybrid, load_recipe
from zoo.recipe.model import DecoderConfig
from zoo.recipe.training import TrainingConfig

CONFIGS = [DecoderConfig, TrainingConfig, Hybrid, *(spec.config for spec in mixers.values())]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_integer_has_a_bound(config: type) -> None:
    for name, field in config.model_fields.items():
        if int in (field.annotation, *get_args(field.annotation)):
            assert any(hasattr(bound, "le") or hasattr(bound, "lt") for bound in field.metadata), name


@pytest.mark.parametrize(
    ("mixer", "key", "largest"),
    [
        ("sliding-window", "mixer.window", LONGEST),
        ("rwkv7", "mixer.value_rank", 2**20),
        ("mamba2", "mixer.convolution", 2**16),
        ("mamba2", "mixer.state_width", WIDEST_HEAD),
        ("power", "model.head_width", WIDEST_HEAD),
        ("softmax", "model.vocab_size", 2**31 - 1),
        ("softmax", "model.layers", 2**12),
    ],
)
def test_absurd_sizes_are_refused_by_name(mixer: str, key: str, largest: int) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("tiny", [f"mixer={mixer}", f"{key}={10**21}"])
    assert str(caught.value) == f"overrides: {key}: must be less than or equal to {largest}, got {10**21}"


def test_the_largest_sizes_are_counted_or_refused_in_one_line() -> None:
    widest = ["model.vocab_size=2147483647", "model.width=1048576", "model.heads=65536", "model.layers=2"]
    assert account(load_recipe("tiny", widest), [LONGEST]).state_bytes[LONGEST] // 2**60 == 16
    for mixer in (["mixer=power", "mixer.p=4"], ["mixer=sliding-window", f"mixer.window={LONGEST}"]):
        with pytest.raises(InputError, match=r"state: expected one of fewer than 2\^63 bytes, .* smaller power"):
            account(load_recipe("tiny", [*widest, *mixer, "model.head_width=65536"]), [1024])
