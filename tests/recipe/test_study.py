import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.config import apply_overrides
from zoo.errors import ConfigError
from zoo.recipe import load_recipe
from zoo.recipe.study import (
    DEFAULT_MIXERS,
    Budget,
    Study,
    available_studies,
    load_study,
    study_command,
    task_name,
)

NORMED = "mixer.query_key_norm=true"
FOUR = {
    "softmax": ("mixer=softmax", NORMED),
    "linear": ("mixer=linear", NORMED),
    "power": ("mixer=power", "mixer.p=2", NORMED),
    "gated-power": ("mixer=gated-power", "mixer.p=2", NORMED),
}


def test_the_studies_of_the_package() -> None:
    assert available_studies() == [
        "code-64k", "code-64k-rates", "four-mixers", "four-mixers-rates", "rates", "recall", "recall-large",
        "steadiness", "steadiness-larger", "steadiness-warm-up",
    ]  # fmt: skip
    study, rates = load_study("four-mixers"), load_study("four-mixers-rates")
    assert (study.name, study.recipe, study.variants) == ("four-mixers", "tiny", FOUR)
    assert study.seeds == 3
    assert study.learning_rates.keys() == FOUR.keys()
    assert (rates.overrides, rates.variants) == (study.overrides, study.variants)


def test_code_at_65536_tokens_has_each_mixer_at_three_budgets_and_its_rates() -> None:
    study, rates = load_study("code-64k"), load_study("code-64k-rates")
    assert list(study.variants) == [
        "rwkv7", "softmax", "gated-linear", "power", "gated-power", "gated-delta", "kda"
    ]  # fmt: skip
    assert [budget.seconds for budget in study.budgets] == [120, 240, 480]
    assert (rates.overrides, rates.variants) == (study.overrides, study.variants)
    for variant in study.variants:
        (rate,) = study.rates_of(variant)
        assert rate in rates.rates_of(variant)
    assert len(rates.rates_of("power")) >= 3


def test_several_budgets_are_one_measure_and_each_another() -> None:
    study = Study.from_yaml("{name: s, recipe: tiny, variants: {a: {}}, budgets: {tokens: [1e6, 2000000]}}")
    assert study.budgets == study.each_budget == (Budget(tokens=1_000_000), Budget(tokens=2_000_000))
    assert [budget.folder for budget in study.budgets] == ["tokens-1000000", "tokens-2000000"]
    assert [Budget(seconds=0.5).folder, Budget(flops=1e18).folder] == ["seconds-0.5", "flops-1e+18"]
    assert Study.from_yaml(study.to_yaml()) == study
    assert load_study("tiny").each_budget == (None,)
    assert study.replace(budgets=(), budget=Budget(seconds=3)).each_budget == (Budget(seconds=3),)


def test_a_study_may_say_budget_tasks_measures_and_rates_by_variant() -> None:
    study = Study.from_yaml(
        "{name: s, recipe: tiny, variants: {a: {mixer: power}, b: []}, budget: {tokens: 1e6}, match: flops,\n"
        "tasks: [text, {kind: mqar, pairs: 8, train_lengths: [64, 128]}], learning_rates: {a: 1e-3, b: [1e-3, 2e-3]},\n"
        "evaluate: {positions: true, lengths: [512, 1024]}}"
    )
    assert study.budget == Budget(tokens=1_000_000)
    assert [task_name(task) for task in study.tasks] == ["text", "mqar pairs=8 train_lengths=64+128"]
    assert (study.rates_of("a"), study.rates_of("b")) == ((1e-3,), (1e-3, 2e-3))
    text, recall = study.tasks
    assert study.task_overrides(text) == ("evaluation.positions=true", "evaluation.lengths=[512, 1024]")
    assert study.task_overrides(recall) == (
        'task={"kind": "mqar", "pairs": 8, "train_lengths": [64, 128]}', "evaluation.lengths=[512, 1024]",
    )  # fmt: skip
    assert Study.from_yaml(study.to_yaml()) == study
    assert study_command(study) == "zoo ablate study.yaml"


def test_a_recipe_stands_for_the_study_of_its_mixers() -> None:
    study = load_study("gpt2-124m")
    assert (study.recipe, tuple(study.variants)) == ("gpt2-124m", DEFAULT_MIXERS)
    assert load_study("gpt2-124m", ["linear"]).variants == {"linear": ("mixer=linear",)}


def test_a_file_holds_a_study_or_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(load_study("four-mixers").to_yaml())
    assert load_study(str(path)) == load_study("four-mixers")
    path.write_text(load_recipe("tiny").to_yaml())
    assert load_study(str(path), ["power"]).recipe == str(path)


def test_overrides_come_after_the_studys_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("{name: s, recipe: tiny, overrides: [training.steps=5], variants: {a: {mixer: power}}}")
    assert load_study(str(path), overrides=["training.steps=7"]).overrides == ("training.steps=5", "training.steps=7")


@pytest.mark.parametrize(
    ("written", "overrides"),
    [
        ("{mixer: {name: power, p: 2}}", ("mixer.name=power", "mixer.p=2")),
        ("{mixer: power, mixer.p: 2}", ("mixer=power", "mixer.p=2")),
        ("[mixer=power, mixer.p=2]", ("mixer=power", "mixer.p=2")),
        ("{hybrid: {mixer: softmax, every: 2}}", ("hybrid.mixer=softmax", "hybrid.every=2")),
        ("{training.learning_rate: 1e-3, model.bias: false}", ("training.learning_rate=0.001", "model.bias=false")),
        ("{data.source: '12', data.tokenizer: null}", ('data.source="12"', "data.tokenizer=null")),
        ("", ()),
    ],
)
def test_what_a_variant_may_be(written: str, overrides: tuple[str, ...]) -> None:
    study = Study.from_yaml(f"name: s\nrecipe: tiny\nvariants:\n  a: {written}\n")
    assert study.variants == {"a": overrides}
    assert Study.from_yaml(study.to_yaml()) == study


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Zl", "Zp"], exclude_characters="\ufeff"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT


@given(st.dictionaries(st.text("abc", min_size=1), SCALARS | st.lists(SCALARS), min_size=1))
def test_a_mapping_is_the_overrides_that_set_it(values: dict[str, object]) -> None:
    study = Study.from_mapping({"name": "s", "recipe": "tiny", "variants": {"a": values, "b": {"section": values}}})
    assert apply_overrides({}, study.variants["a"]) == values
    assert apply_overrides({}, study.variants["b"]) == {"section": values}


@pytest.mark.parametrize(
    ("name", "mixers", "message"),
    [
        ("for-mixers", None, r"^unknown study or recipe 'for-mixers' \(did you mean 'four-mixers'\?\)$"),
        ("gpt2-124", None, r"^unknown study or recipe 'gpt2-124' \(did you mean 'gpt2-124m'\?\)$"),
        (
            "zzz",
            None,
            r"^unknown study or recipe 'zzz'; there are code-64k, code-64k-rates, four-mixers, four-mixers-rates, .*$",
        ),
        ("no/such.yaml", None, r"^no/such.yaml: no such file$"),
        ("tiny", ["pwoer"], r"^mixers: unknown mixer 'pwoer' \(did you mean 'power'\?\)$"),
        ("tiny", ["power", "power"], r"^mixers: 'power' stands twice$"),
        ("tiny", [], r"^mixers: at least one is needed$"),
        ("four-mixers", ["power"], r"^mixers: 'four-mixers' is a study, which says itself what it compares"),
    ],
)
def test_what_is_unknown_is_named(name: str, mixers: list[str] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(name, mixers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"varients": {}}, r"^s.yaml: varients: unknown key \(did you mean 'variants'\?\)"),
        ({"variants": {}}, r"^s.yaml: variants: .*at least 1 item"),
        ({"variants": {"a/b": []}}, r"variant 'a/b' must be 1 to 64 letters"),
        ({"variants": {"..": []}}, r"variant '\.\.' must be 1 to 64 letters"),
        ({"variants": {"<b>": []}}, r"variant '<b>' must be 1 to 64 letters"),
        ({"variants": {"index.html": []}}, r"variant 'index.html' must not end like a file"),
        ({"variants": {"Power": [], "power": []}}, r"variant 'Power' differs from another one only in upper and lower"),
        ({"variants": {"a": "mixer=power"}}, r"^s.yaml: variants.a: .*got 'mixer=power'"),
        ({"seeds": 0}, r"^s.yaml: seeds: must be greater than or equal to 1, got 0"),
        ({"learning_rates": [0]}, r"^s.yaml: learning_rates: must be numbers above 0, or such by variant, got 0"),
        ({"learning_rates": [1e-3, 1e-3]}, r"learning_rates: 0.001 stands twice"),
        (
            {"learning_rates": {"a": [1e-3, -1]}},
            r"^s.yaml: learning_rates: of variant 'a' must be numbers above 0, .* -1",
        ),
        ({"learning_rates": {"b": 1e-3}}, r"learning_rates: there is no variant 'b'"),
        ({"budget": {}}, r"^s.yaml: budget: must be exactly one of tokens, flops and seconds"),
        ({"budget": {"tokens": 5, "flops": 5.0}}, r"^s.yaml: budget: must be exactly one of tokens, flops and seconds"),
        ({"budgets": {"tokens": 5}}, r"^s.yaml: budgets: must be a list of tokens, flops or seconds, such as "),
        ({"budgets": {"tokens": [5, 0]}}, r"^s.yaml: budgets.1.tokens: must be greater than or equal to 1, got 0"),
        ({"budgets": {"tokens": [5, 5]}}, r"budgets: tokens 5 stands twice"),
        ({"budgets": {"seconds": [5]}, "budget": {"seconds": 5}}, r"budgets: stand in the place of budget, and there"),
        ({"budgets": [{"seconds": 5}, {"tokens": 5}]}, r"budgets: must all be tokens, flops or seconds, for they are"),
        ({"budget": {"tokens": 0}}, r"^s.yaml: budget.tokens: must be greater than or equal to 1, got 0"),
        (
            {"tasks": [{"pairs": 8}]},
            r"^s.yaml: tasks.0: must be a task's kind, such as mqar, or a mapping with its kind",
        ),
        ({"tasks": ["mqar", "mqar"]}, r"tasks: 'mqar' stands twice"),
        ({"match": "width"}, r"^s.yaml: match: must be 'parameters', 'state', 'flops' or 'none', got 'width'"),
        ({"name": ""}, r"name '' must be 1 to 64 letters"),
        ({"recipe": None}, r"^s.yaml: recipe: must be a valid string, got None"),
    ],
)
def test_a_bad_study_is_one_line(changes: dict[str, object], message: str) -> None:
    values = {"name": "s", "recipe": "tiny", "variants": {"a": ["mixer=power"]}} | changes
    with pytest.raises(ConfigError, match=message) as caught:
        Study.from_mapping(values, "s.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("study", "command"),
    [
        (load_study("four-mixers"), "zoo ablate four-mixers"),
        (load_study("four-mixers", overrides=["data.source=a b"]), "zoo ablate four-mixers 'data.source=a b'"),
        (load_study("tiny"), "zoo ablate tiny"),
        (load_study("tiny", ["power"], ["mixer.p=4"]), "zoo ablate tiny --mixers power mixer.p=4"),
        (
            load_study("tiny", ["power:p=2", "power:p=4:normalize=false"]),
            "zoo ablate tiny --mixers power:p=2,power:p=4:normalize=false",
        ),
        (load_study("tiny", seeds=3), "zoo ablate tiny --seeds 3"),
        (
            load_study("four-mixers", overrides=["training.steps=9"], learning_rates=[1e-3, 0.02]),
            "zoo ablate four-mixers --learning-rates 0.001,0.02 training.steps=9",
        ),
        (load_study("four-mixers-rates").replace(variants={"x": ()}), "zoo ablate study.yaml"),
        (load_study("tiny").replace(description="mine"), "zoo ablate study.yaml"),
        (
            load_study("code-64k", overrides=["training.seed=2"]).replace(name="mine"),  # options too long for a name
            "zoo ablate study.yaml",
        ),
    ],
)
def test_the_command_makes_the_same_study(study: Study, command: str, tmp_path: Path) -> None:
    assert study_command(study) == command
    _, _, name, *rest = shlex.split(command)
    if name != "study.yaml":
        given = dict(zip(rest[::2], rest[1::2], strict=False))
        mixers, seeds, rates = (given.get(f"--{option}") for option in ("mixers", "seeds", "learning-rates"))
        again = load_study(
            name,
            mixers and mixers.split(","),
            [word for word in rest if "=" in word and word != mixers],
            seeds=None if seeds is None else int(seeds),
            learning_rates=rates and [float(rate) for rate in rates.split(",")],
        )
        assert again == study


def test_mixers_may_have_options() -> None:
    study = load_study("tiny", ["softmax", "power:p=2", "gated-power:p=3:normalize=false"])
    assert study.variants == {
        "softmax": ("mixer=softmax",),
        "power p=2": ("mixer=power", "mixer.p=2"),
        "gated-power p=3 normalize=false": ("mixer=gated-power", "mixer.p=3", "mixer.normalize=false"),
    }


@pytest.mark.parametrize(
    ("mixers", "message"),
    [
        (["powr:p=2"], r"^mixers: unknown mixer 'powr' \(did you mean 'power'\?\)"),
        (["power:2"], r"^mixers: options must be as in power:key=value, got '2' in 'power:2'$"),
        (["power:p=2", "power:p=2"], r"^mixers: 'power:p=2' stands twice$"),
        (["power:p=<2>"], r"variant 'power p=<2>' must be 1 to 64 letters"),
    ],
)
def test_options_that_are_none_are_refused(mixers: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study("tiny", mixers)
