"""The learning rate goes straight up and smoothly down; precision, decay and clipping are as defined."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.builder import build
from zoo.errors import ConfigError
from zoo.training import TrainingConfig
from zoo.training.optimizer import autocast_dtype, build_optimizer, clip_gradients, learning_rate_at, set_learning_rate


@given(
    steps=st.integers(1, 200),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    minimum=st.none() | st.floats(0, 1),
)
def test_rises_to_the_peak_and_falls_to_the_minimum(steps, warmup, schedule, minimum):
    config = TrainingConfig(
        steps=steps,
        warmup_steps=int(warmup * steps),
        schedule=schedule,
        learning_rate=1.0,
        min_learning_rate=minimum,
    )
    rates = [learning_rate_at(config, step) for step in range(1, steps + 1)]
    peak = max(config.warmup_steps, 1)
    assert all(0 < rate <= 1 for rate in rates[:-1])
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak - 1 :] == sorted(rates[peak - 1 :], reverse=True)
    if config.warmup_steps:
        assert rates[peak - 1] == pytest.approx(1)
    if schedule == "constant" or config.warmup_steps == steps:
        assert rates[-1] == 1
    else:
        assert rates[-1] == pytest.approx(0.1 if minimum is None else minimum)


def test_halfway_is_the_mean_of_peak_and_minimum():
    for schedule in ("cosine", "linear"):
        config = TrainingConfig(steps=110, warmup_steps=10, schedule=schedule, learning_rate=1.0, min_learning_rate=0.2)
        assert learning_rate_at(config, 5) == 0.5
        assert learning_rate_at(config, 60) == pytest.approx(0.6)


def test_a_schedule_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"min_learning_rate 0\.1 must not be above learning_rate 0\.01"):
        TrainingConfig(learning_rate=0.01, min_learning_rate=0.1)
    with pytest.raises(ConfigError, match="warmup_steps 20 must not be above steps 10; set both"):
        TrainingConfig(steps=10, warmup_steps=20)


@pytest.mark.parametrize(("setting", "expected"), [("auto", None), ("none", None), ("bfloat16", torch.bfloat16)])
def test_precision_on_a_cpu(setting, expected):
    assert autocast_dtype(TrainingConfig(autocast=setting), torch.device("cpu")) is expected


def test_matrices_decay_and_vectors_do_not(tiny_model):
    model = tiny_model()
    optimizer = build_optimizer(model, TrainingConfig(weight_decay=0.3))
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decays[id(parameter)] == (0.3 if parameter.ndim >= 2 else 0.0)


def test_every_group_moves_at_its_share_of_the_rate():
    model = build("rwkv7-124m", overrides=["model.layers=1"], device="meta")
    optimizer = build_optimizer(model, TrainingConfig(learning_rate=0.5, epsilon=1e-18))
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 1.0}
    set_learning_rate(optimizer, 0.1)
    assert {(group["share"], group["lr"]) for group in optimizer.param_groups} == {(1.0, 0.1), (2.0, 0.2)}
    (twice,) = (group for group in optimizer.param_groups if group["share"] == 2)
    assert twice["params"] == [model.get_parameter("blocks.0.mixer.decay.expand.bias")]
    assert {group["eps"] for group in optimizer.param_groups} == {1e-18}


def test_frozen_parameters_are_left_out(tiny_model):
    model = tiny_model()
    model.norm.requires_grad_(False)
    optimizer = build_optimizer(model, TrainingConfig())
    assert len([parameter for group in optimizer.param_groups for parameter in group["params"]]) == 5


@pytest.mark.parametrize("limit", [None, 0.5, 1e9])
def test_the_joint_norm_is_returned_and_limited(limit):
    model = torch.nn.Linear(3, 2)
    model.weight.grad = torch.full((2, 3), 2.0)
    model.bias.grad = torch.full((2,), 3.0)
    before = math.sqrt(6 * 4 + 2 * 9)
    assert clip_gradients(model, limit).item() == pytest.approx(before)
    after = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))
    assert after == pytest.approx(min(before, limit or before), rel=1e-4)
