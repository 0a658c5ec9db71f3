"""Recipes: those that come with the package, files of one's own, overrides, and the way to text and back."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.builder import configure
from zoo.config import apply_overrides
from zoo.errors import ConfigError
from zoo.mixers import mixers
from zoo.recipe import Recipe, available_recipes, load_recipe
from zoo.recipe.study import load_study

MODEL = {"vocab_size": 257, "width": 8, "layers": 4, "heads": 2}


def line(name: str | Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(name, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_recipes_that_come_with_the_package() -> None:
    assert available_recipes() == [
        "delta-340m",
        "delta-power-124m",
        "gated-delta-400m",
        "gla-340m",
        "gpt2-124m",
        "gpt2-124m-rotary",
        "hgrn2-340m",
        "hybrid-124m",
        "kda-340m",
        "llama-360m",
        "mamba2-130m",
        "rwkv7-124m",
        "tiny",
    ]


@pytest.mark.parametrize("name", available_recipes())
def test_a_recipe_is_called_like_its_file_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_the_rotary_recipe_differs_from_gpt2_in_its_positions_only() -> None:
    learned, rotary = load_recipe("gpt2-124m"), load_recipe("gpt2-124m-rotary")
    assert learned.model.replace(positions="rotary") == rotary.model
    assert learned.training.tokens_per_step == rotary.training.tokens_per_step


def test_a_path_is_read_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(load_recipe("tiny", ["name=mine", "mixer=power"]).to_yaml())
    assert load_recipe(path) == load_recipe(str(path)) == load_recipe("tiny", ["mixer=power", "name=mine"])


def test_an_unknown_recipe_names_the_nearest_or_all(tmp_path: Path) -> None:
    assert line("gpt2-124") == "unknown recipe 'gpt2-124' (did you mean 'gpt2-124m'?)"
    assert (
        line("zzz")
        == f"unknown recipe 'zzz'; the recipes are {', '.join(available_recipes())}, or a path to a .yaml file"
    )
    assert line(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such file"
    assert line("").startswith("unknown recipe ''")


def test_errors_in_a_file_name_the_file_and_the_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmodel: {vocab_size: 257, width: 8, layers: 1, heads: 2}\nmixr: power")
    assert line(path) == f"{path}: mixr: unknown key (did you mean 'mixer'?)"
    path.write_text("name: mine\nmodel: {vocab_size: 257, width: 8, layers: 1, heads: 3}")
    assert line(path) == f"{path}: model: heads must divide width 8 (or set head_width), got 3"
    path.write_text("name: mine\nname: yours")
    assert line(path) == f"{path}, line 2: key 'name' stands twice"
    path.write_text("name: mine")
    assert line(path) == f"{path}: model: missing"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mixer=powr", "mixer.name: must be one of .*, got 'powr' .did you mean 'power'"),
        ("mixer.p=2", "mixer.p: unknown key; the keys are "),
        ("mixer.rotry=true", r"mixer.rotry: unknown key \(did you mean 'rotary'\?\)"),
        ("mixer=3", "mixer: must be a mixer's name, such as power, or a mapping with its name and options, got 3$"),
        ("mixer=", "mixer: must be a mixer's name, such as power, or a mapping with its name and options, got None$"),
        ("hybrid={mixer: [1], every: 2}", "hybrid.mixer: must be a mixer's name, .* got "),
        ("mixer={name: gated-power, retention: [0.9]}", r"mixer.retention: must be two numbers, got \[0.9\]$"),
        ("mixer={name: gated-power, retention: 0.9}", r"mixer.retention: must be two numbers, got 0.9$"),
        ("mixer={name: gated-power, retention: [0.9, 0.8]}", r"mixer.retention: must be two .* got \[0.9, 0.8\]$"),
        ("mixer={name: mamba2, decay: [1, 2, 3]}", r"mixer.decay: must be two numbers, got \[1, 2, 3\]$"),
        ("mixer={name: mamba2, step_limit: []}", r"mixer.step_limit: must be two numbers, got "),
        ("steps=3", r"steps: unknown key \(did you mean 'training.steps'\?\)"),
        ("training.stepz=3", r"training.stepz: unknown key \(did you mean 'steps'\?\)"),
        ("training.steps=12.5", "training.steps: must be a valid integer, got 12.5"),
        ("training.steps=0", "training.steps: must be greater than or equal to 1, got 0"),
        ("model.norm=layrnorm", r"model.norm: must be .*, got 'layrnorm' \(did you mean 'layernorm'\?\)"),
        ("hybrid.mixer=power", "hybrid.every: missing"),
        ("hybrid={mixer: power, every: 1}", "hybrid.every: must be greater than or equal to 2, got 1"),
        ("hybrid={mixer: power, every: 4}", "hybrid.every: must be at most model.layers 3, got 4"),
        ("hybrid={mixer: powr, every: 2}", "hybrid.mixer.name: must be one of .*, got 'powr'"),
        ("mixers=[power, softmax]", "mixers: must be one for each of model.layers 3, or a number .*, got 2"),
        ("mixers=power", "mixers: must be a list, got 'power'"),
        ("mixers=[]", "mixers: must be one for each of model.layers 3, or a number that divides it, got 0"),
        ("mixers=[power, powr, power]", r"mixers\.1\.name: must be one of .*, got 'powr' .did you mean 'power'"),
        ("name=a/b", "name: must be letters, digits"),
        ("name=..", "name: must be letters, digits"),
    ],
)
def test_a_bad_override_is_named_by_its_key(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^overrides: {expected}"):
        load_recipe("tiny", [override])


@pytest.mark.parametrize(
    ("overrides", "given"), [("mixer=rwkv7", "'mixer=rwkv7'"), ("", "''"), ([3], r"\[3\]"), ([None], r"\[None\]")]
)
def test_overrides_are_a_list_of_texts(overrides: Any, given: str) -> None:
    message = rf"^overrides: must be a list of texts such as \['training.steps=1000'\], got {given}$"
    for call in (
        lambda: load_recipe("tiny", overrides),
        lambda: load_recipe("tiny").override(overrides),
        lambda: apply_overrides({}, overrides),
        lambda: configure("tiny", overrides=overrides),
        lambda: load_study("four-mixers", overrides=overrides),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_learned_positions_limit_the_context() -> None:
    assert line("gpt2-124m", "training.context_length=2048") == (
        "overrides: training.context_length: must be at most model.max_positions 1024, as positions are learned, "
        "got 2048"
    )
    load_recipe("gpt2-124m-rotary", ["training.context_length=100000"])


def test_naming_a_mixer_replaces_it_and_an_option_changes_it() -> None:
    power = load_recipe("tiny", ["mixer=power", "mixer.p=3"])
    assert power == load_recipe("tiny", ["mixer.p=3", "mixer=power"])
    assert power == load_recipe("tiny", ["mixer={name: power, p: 3}"])
    assert power.override(["mixer=gated-power"]).mixer == mixers["gated-power"].config()
    assert power.override(["mixer.name=softmax"]).mixer == mixers["softmax"].config()
    assert power.override(["mixer=power"]).mixer == mixers["power"].config()
    assert power.override([]) == power


def test_a_hybrid_has_its_second_mixer_in_every_so_many_layers() -> None:
    recipe = load_recipe("hybrid-124m")
    names = [mixer.name for mixer in recipe.layer_mixers]
    assert names == (["gated-power"] * 3 + ["softmax"]) * 3
    assert recipe.override(["hybrid=null"]).layer_mixers == (recipe.mixer,) * 12
    every_second = load_recipe("tiny", ["hybrid.mixer=linear", "hybrid.every=2"])
    assert [mixer.name for mixer in every_second.layer_mixers] == ["softmax", "linear", "softmax"]


@given(st.lists(st.sampled_from(list(mixers)), min_size=1, max_size=4), st.integers(1, 3))
def test_mixers_are_one_for_each_layer_or_a_repetition(names: list[str], times: int) -> None:
    recipe = load_recipe("tiny", [f"mixers=[{', '.join(names)}]", f"model.layers={len(names) * times}"])
    assert [mixer.name for mixer in recipe.layer_mixers] == names * times
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    other = recipe.override(["mixer=power", "mixer.p=3"])
    assert other.mixers is None
    assert other.layer_mixers == (mixers["power"].config(p=3),) * len(names) * times


def test_mixers_are_told_in_words() -> None:
    recipe = load_recipe("tiny", ["mixers=[{name: power, p: 3}, softmax, power]"])
    assert recipe.mixer_names == "power, softmax in 1 of 3 layers"
    assert recipe.override(["mixer=linear"]).mixer_names == "linear"


@pytest.mark.parametrize("overrides", [["mixer=softmax"], ["mixer.rotary=false"], ["mixer.name=power"]])
def test_what_mixers_leave_no_layer_for_is_refused(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="overrides: mixer: means nothing beside mixers"):
        load_recipe("tiny", ["mixers=[power, softmax, power]", *overrides])
    with pytest.raises(ConfigError, match="hybrid: must be null beside mixers"):
        load_recipe("tiny", ["mixers=[power]", "hybrid={mixer: softmax, every: 2}"])


mixer_overrides = st.one_of(
    st.sampled_from([[f"mixer={name}"] for name in mixers]),
    st.integers(1, 4).map(lambda p: ["mixer=power", f"mixer.p={p}"]),
    st.floats(0.1, 0.9).map(lambda low: ["mixer=gated-power", f"mixer.retention=[{low!r}, 0.95]"]),
    st.integers(1, 10**6).map(lambda window: ["mixer=sliding-window", f"mixer.window={window}"]),
)
other_overrides = st.lists(
    st.one_of(
        st.floats(1e-9, 1e9).map(lambda value: f"training.learning_rate={value!r}"),
        st.integers(1, 10**9).map(lambda value: f"training.steps={value + 1000}"),
        st.sampled_from(["true", "false"]).map(lambda value: f"model.bias={value}"),
        st.sampled_from(["learned", "rotary", "none"]).map(lambda value: f"model.positions={value}"),
        st.sampled_from(["null", "0.5"]).map(lambda value: f"training.clip_norm={value}"),
        st.sampled_from(["data/*.bin", "*.txt", "null", "1e-3", "off", "a b", "é"]).map(
            lambda value: f"data.source={value if value not in ('null', '1e-3') else repr(value)}"
        ),
        st.sampled_from(list(mixers)).map(lambda name: f"hybrid={{mixer: {name}, every: 2}}"),
    ),
    max_size=5,
    unique_by=lambda override: override.partition("=")[0],
)


@given(st.sampled_from(available_recipes()), mixer_overrides, other_overrides, st.randoms())
def test_any_recipe_goes_through_yaml_and_back(name: str, mixer: list[str], others: list[str], random) -> None:
    others = [*others, "training.context_length=64", "training.min_learning_rate=0"]
    recipe = load_recipe(name, [*mixer, *others])
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_yaml(recipe.to_yaml()).to_yaml() == recipe.to_yaml()
    shuffled = [*mixer, *others]
    random.shuffle(shuffled)
    assert load_recipe(name, shuffled) == recipe
    assert load_recipe(name, mixer).override(others) == recipe
