"""Accounting: counts that agree with the model itself, and matching of parameters."""

import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from zoo.accounting import CONTEXTS, account, count_parameters, match_parameters
from zoo.builder import build, configure, shrink
from zoo.errors import ConfigError
from zoo.kernels.power import state_size
from zoo.mixers import mixers
from zoo.recipe import available_recipes, load_recipe
from zoo.recipe.study import load_study
from zoo.states import state_bytes
from zoo.study.resolve import resolve_study


def test_gpt2_by_component() -> None:
    parameters = count_parameters(load_recipe("gpt2-124m"))
    width, layers = 768, 12
    assert parameters.embedding == 50257 * width
    assert parameters.positions == 1024 * width
    assert parameters.mixers == layers * (4 * width * width + 4 * width)
    assert parameters.feed_forward == layers * (8 * width * width + 5 * width)
    assert parameters.norms == (2 * layers + 1) * 2 * width
    assert parameters.head == 0
    assert parameters.total == 124_439_808


@pytest.mark.parametrize("name", available_recipes())
@pytest.mark.parametrize("tied", ["true", "false"])
def test_components_add_up_to_the_model(name: str, tied: str) -> None:
    recipe = load_recipe(name, [f"model.tie_embeddings={tied}"])
    parameters = count_parameters(recipe)
    assert parameters.total == build(recipe, device="meta").num_parameters()
    assert parameters.head == (0 if tied == "true" else recipe.model.vocab_size * recipe.model.width)


def test_softmax_state_grows_with_the_context_and_power_state_does_not() -> None:
    softmax = account(configure("gpt2-124m-rotary", mixer="softmax")).state_bytes
    power = account(configure("gpt2-124m-rotary", mixer="power", p=2)).state_bytes
    counters = 12 * 2 * 8 + 8
    for context in CONTEXTS:
        assert softmax[context] - 2 * 12 * 768 * 4 * context <= counters
    D = state_size(64, 2)
    assert {power[context] - 12 * 12 * D * 65 * 4 for context in CONTEXTS} <= set(range(counters + 1))
    assert len(set(power.values())) == 1


def test_an_offset_has_its_rows_and_parameters_counted() -> None:
    plain, offset = (
        account(configure("gpt2-124m-rotary", mixer="gated-power", **options), [4096])
        for options in ({}, {"offset": "learned"})
    )
    rows = state_size(64, 2, offset=True) - state_size(64, 2)
    assert rows == 65
    assert offset.state_bytes[4096] - plain.state_bytes[4096] == 12 * 12 * rows * 65 * 4
    assert offset.parameters.mixers - plain.parameters.mixers == 12 * 12
    assert offset.forward_flops_per_token[4096] - plain.forward_flops_per_token[4096] == 12 * 12 * 4 * rows * 65


def test_bfloat16_halves_keys_and_values_but_not_running_sums() -> None:
    for mixer, ratio in (("softmax", 2), ("sliding-window", 2), ("power", 1), ("gated-linear", 1)):
        recipe = configure("tiny", mixer=mixer)
        full, half = (account(recipe, [4096], dtype).state_bytes[4096] for dtype in (torch.float32, torch.bfloat16))
        assert full / half == pytest.approx(ratio, rel=1e-3)


@pytest.mark.parametrize("mixer", mixers)
def test_counts_on_the_meta_device_are_those_of_a_real_model(mixer: str) -> None:
    recipe = shrink(configure("llama-360m", mixer=mixer))
    model, costs = build(recipe), account(recipe, [32, 64])
    for context in (32, 64):
        assert costs.state_bytes[context] == state_bytes(model.init_state(1, max_len=context))
        assert costs.forward_flops_per_token[context] == model.flops(context) / context
        assert costs.training_flops_per_token[context] == 3 * costs.forward_flops_per_token[context]


def test_flops_of_softmax_grow_with_the_context_and_those_of_power_stay() -> None:
    softmax, power = (
        account(configure("gpt2-124m-rotary", mixer=mixer)).forward_flops_per_token for mixer in ("softmax", "power")
    )
    weights = 2 * (124_439_808 - 1024 * 768)
    assert softmax[1024] == pytest.approx(weights + 12 * 4 * 768 * 512, rel=0.01)
    assert softmax[1_048_576] > 50 * softmax[1024]
    assert power[1_048_576] == pytest.approx(power[65_536], rel=0.01)


def test_learned_positions_end_the_contexts() -> None:
    costs = account(load_recipe("gpt2-124m"), [512, 1024, 1025])
    assert list(costs.state_bytes) == list(costs.forward_flops_per_token) == [512, 1024]


@given(
    st.sampled_from(["tiny", "shrunk"]),
    st.sampled_from(sorted(mixers)),
    st.sampled_from(["gelu", "swiglu"]),
    st.floats(0.8, 3.0),
)
def test_parameters_are_matched_within_a_hundredth(name: str, mixer: str, feed_forward: str, ratio: float) -> None:
    recipe = shrink(load_recipe("tiny")) if name == "shrunk" else load_recipe(name)
    recipe = recipe.override([f"mixer={mixer}", f"model.feed_forward={feed_forward}"])
    target = round(ratio * count_parameters(recipe).total)
    narrow = recipe.replace(model=recipe.model.replace(feed_forward_width=1))
    assume(target >= count_parameters(narrow).total)  # the mixers alone may be larger
    matched = match_parameters(recipe, target)
    assert abs(count_parameters(matched).total / target - 1) <= 0.01
    width = matched.model.feed_forward_width
    assert recipe.replace(model=recipe.model.replace(feed_forward_width=width)) == matched


@pytest.mark.parametrize(
    "name", [name for name in available_recipes() if load_recipe(name).model.feed_forward != "none"]
)
def test_a_gated_variant_is_matched_to_a_larger_softmax_model(name: str) -> None:
    target = round(1.1 * count_parameters(configure(name, mixer="softmax")).total)
    matched = match_parameters(configure(name, mixer="gated-power"), target)
    assert abs(count_parameters(matched).total / target - 1) <= 0.005
    width, model = matched.model.feed_forward_width or 0, matched.model
    eight_columns = 8 * model.layers * model.width * 3  # at most, for the three matrices of swiglu
    assert width % 8 == 0 or eight_columns > 0.01 * target


def test_a_recipe_that_matches_already_is_left_as_it_is() -> None:
    recipe = load_recipe("tiny")
    total = count_parameters(recipe).total
    assert match_parameters(recipe, round(total * 1.004)) is recipe
    assert match_parameters(recipe, round(total * 1.04)).model.feed_forward_width == 408


@pytest.mark.parametrize("mixers", [["mamba2", "gated-power"], ["gated-power", "mamba2"]])
def test_blocks_of_a_mixer_alone_are_refused_with_what_makes_a_study_of_them(mixers: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_study(load_study("mamba2-130m", mixers))
    overrides = re.findall(r"model\.feed_forward\S*=\S+", str(caught.value))
    assert overrides == ["model.feed_forward=gelu", "model.feed_forward_width=256"]  # as in docs/mixers.md
    (part,) = resolve_study(load_study("mamba2-130m", mixers, overrides))
    first, second = (count_parameters(variant.recipe).total for variant in part.variants)
    assert abs(first - second) / first <= 0.01


def test_blocks_of_a_mixer_alone_have_nothing_to_match_with() -> None:
    recipe = configure("mamba2-130m", mixer="gated-power")
    with pytest.raises(ConfigError, match=r"has 123,943,968, not 128,989,632, and no feed-forward layer"):
        match_parameters(recipe, 128_989_632)


def test_parameters_out_of_reach_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="tiny with mixer softmax has 357,120 and no feed-forward width gives it 1,000"
    ):
        match_parameters(load_recipe("tiny"), 1000)
