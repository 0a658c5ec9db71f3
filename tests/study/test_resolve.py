"""What a study trains: all that is wrong is told at once, budgets become steps, and models are made equal."""

from pathlib import Path

import pytest

from zoo.accounting import account, count_parameters
from zoo.errors import ConfigError, FaultsError
from zoo.recipe import Recipe
from zoo.recipe.study import Budget, Measures, Study, load_study
from zoo.study.budget import flops_per_step
from zoo.study.options import differing_options
from zoo.study.pace import Pace
from zoo.study.resolve import resolve_study
from zoo.study.variants import Variant


def variants_of(study: Study, folder: Path | None = None) -> tuple[Variant, ...]:
    (part,) = resolve_study(study, folder)
    return part.variants


def test_every_fault_is_told_at_once_and_names_its_variant(study: Study) -> None:
    bad = study.replace(
        variants={
            "a": ("mixer=softmax",),
            "b": ("mixer=pwoer", "training.setps=3"),
            "c": ("training.seed=4", "data.source=stdlib"),
            "d": ("mixer=power", "mixer.p=9"),
        }
    )
    with pytest.raises(FaultsError) as caught:
        resolve_study(bad)
    starts = [
        "variant 'b': overrides: training.setps: unknown key (did you mean 'steps'?)",
        "variant 'b': overrides: mixer.name: must be one of ",
        "variant 'c': data.source is 'stdlib', and ",
        "variant 'c': training.seed is 4, and 0 in the first variant",
        "variant 'd': overrides: mixer.p: ",
    ]
    assert len(caught.value.lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(caught.value.lines, starts, strict=True))
    assert str(caught.value).splitlines() == list(caught.value.lines)


def test_an_equal_number_of_tokens_is_an_equal_number_of_steps(study: Study) -> None:
    tokens = variants_of(study)[0].recipe.training.tokens_per_step
    found = variants_of(study.replace(budget=Budget(tokens=10 * tokens + 1)))
    assert [variant.steps for variant in found] == 4 * [10]
    assert [variant.recipe.training.warmup_steps for variant in found] == 4 * [3]  # a third, as in the recipe
    assert [run.recipe.training.steps for variant in found for run in variant.runs] == 4 * [10]


def test_equal_operations_are_as_many_steps_as_each_has_room_for(study: Study) -> None:
    budget = 20 * flops_per_step(variants_of(study)[0].recipe)
    for variant in variants_of(study.replace(budget=Budget(flops=budget))):
        spent = variant.steps * flops_per_step(variant.recipe)
        assert budget - flops_per_step(variant.recipe) < spent <= budget


def test_seconds_are_steps_once_the_pace_is_known(study: Study, tmp_path: Path) -> None:
    timed = study.replace(budget=Budget(seconds=60.0))
    assert [variant.is_paced for variant in variants_of(timed, tmp_path)] == 4 * [False]
    (tmp_path / "linear").mkdir()
    pace = Pace(seconds_per_step=0.25, timed_steps=3, compile_seconds=1.0)
    (tmp_path / "linear" / "pace.yaml").write_text(pace.to_yaml())
    _, linear, *_ = variants_of(timed, tmp_path)
    assert (linear.is_paced, linear.steps, linear.recipe.training.warmup_steps) == (True, 240, 80)


@pytest.mark.parametrize("budget", [Budget(tokens=1), Budget(flops=10.0)])
def test_a_budget_without_room_for_a_step_is_refused(budget: Budget, study: Study) -> None:
    kind = "tokens" if budget.tokens else "flops"
    with pytest.raises(ConfigError, match=rf"variant 'softmax': budget.{kind}: must have room for a step, which takes"):
        resolve_study(study.replace(budget=budget))


def test_what_the_study_sets_no_variant_may(study: Study) -> None:
    variants = {"a": ("training.steps=5", "training.learning_rate=1e-2")}
    both = study.replace(budget=Budget(tokens=10**6), learning_rates=(1e-3,), variants=variants)
    with pytest.raises(FaultsError) as caught:
        resolve_study(both)
    assert [line.rpartition(": ")[2] for line in caught.value.lines] == [
        "must be left to the study's learning_rates",
        "must be left to the study's budget",
    ]


def test_rates_may_be_a_variants_own(study: Study) -> None:
    own = study.replace(learning_rates={"softmax": (4e-3,), "power": (1e-3, 2e-3)})
    rates = {variant.name: [run.learning_rate for run in variant.runs] for variant in variants_of(own)}
    assert rates == {"softmax": [4e-3], "linear": [4e-3], "power": [1e-3, 2e-3], "gated-power": [4e-3]}
    assert [variant.runs[0].name for variant in variants_of(own)][:3] == [
        "softmax", "linear", "power/rate-0.001-seed-0",
    ]  # fmt: skip


def state(recipe: Recipe) -> int:
    context = recipe.training.context_length
    return account(recipe, (context,)).state_bytes[context]


def flops(recipe: Recipe) -> float:
    context = recipe.training.context_length
    return account(recipe, (context,)).forward_flops_per_token[context]


def test_models_are_made_equal_in_what_is_asked_for(study: Study) -> None:
    wide = study.overridden(["model.width=64", "model.heads=4", "model.feed_forward_width=256"])
    linear = wide.replace(variants={"power": ("mixer=power",), "linear": ("mixer=linear",)})
    first, second = (variant.recipe for variant in variants_of(linear.replace(match="state")))
    assert state(second) == pytest.approx(state(first), rel=0.1)
    assert count_parameters(second).total == pytest.approx(count_parameters(first).total, rel=0.01)

    first, second = (variant.recipe for variant in variants_of(linear.replace(match="flops")))
    assert flops(second) == pytest.approx(flops(first), rel=0.01)

    first, second = (variant.recipe for variant in variants_of(linear.replace(match="none")))
    assert first.model == second.model


def test_a_window_is_widened_to_an_equal_state(study: Study) -> None:
    windows = study.replace(
        match="state", variants={"softmax": (), "window": ("mixer=sliding-window", "mixer.window=8")}
    )
    first, second = (variant.recipe for variant in variants_of(windows))
    assert state(second) == pytest.approx(state(first), rel=0.1)


def test_a_state_that_cannot_be_made_equal_is_refused(study: Study) -> None:
    unequal = study.replace(match="state", variants={"softmax": (), "mamba2": ("mixer=mamba2",)})
    with pytest.raises(ConfigError, match=r"^variant 'mamba2': match: the state of .* at best, not "):
        resolve_study(unequal)


def test_tasks_have_folders_of_their_own(study: Study) -> None:
    from zoo.recipe.study import TEXT

    (part,) = resolve_study(study.replace(tasks=("text",)))
    assert (part.task, part.folder, part.is_text) == ("text", "", True)
    assert study.task_overrides(TEXT) == ()


with_tasks = pytest.mark.skipif("task" not in Recipe.model_fields, reason="recipes have no tasks yet")


@with_tasks
def test_a_study_of_several_tasks_is_resolved(study: Study) -> None:
    recall = {"kind": "mqar", "train_lengths": [64], "test_lengths": [64]}
    both = study.replace(tasks=("text", recall), variants={"a": ("mixer=linear",)})
    first, second = resolve_study(both.replace(evaluate=Measures(positions=True)))
    assert (first.folder, second.folder) == ("text", "mqar train_lengths=64 test_lengths=64")
    assert second.variants[0].runs[0].name == "mqar train_lengths=64 test_lengths=64/a"
    with pytest.raises(ConfigError, match=r"^task 'mqar', variant 'a': .*training.context_length: must be at least "):
        resolve_study(both.replace(tasks=("text", "mqar")))


@with_tasks
@pytest.mark.parametrize("name", ["recall", "recall-large"])
def test_the_studies_of_recall_are_whole(name: str) -> None:
    (part,) = resolve_study(load_study(name))
    assert len(part.variants) == 11
    assert not part.is_text


def test_the_study_of_warm_ups_has_each_variant_with_a_short_and_a_long_one() -> None:
    (part,) = resolve_study(load_study("steadiness-warm-up"))
    steps = {variant.name: variant.recipe.training.warmup_steps for variant in part.variants}
    names = ["softmax", "softmax-plain", "gated-power", "gated-power-plain"]
    assert steps == dict.fromkeys(names, 150) | {f"{name}-quick": 30 for name in names}
    (before,) = resolve_study(load_study("steadiness"))
    assert {variant.recipe.training.warmup_steps for variant in before.variants} == {30}


@pytest.mark.parametrize("name", ["four-mixers", "four-mixers-rates"])
def test_variants_of_a_packaged_study_differ_in_nothing_but_the_mixer(name: str) -> None:
    (part,) = resolve_study(load_study(name))
    differing = {option.key for option in differing_options(part.variants)}
    assert differing <= {"model.feed_forward_width", "training.learning_rate"}
