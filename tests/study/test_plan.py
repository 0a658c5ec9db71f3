"""What a study will take, before it runs."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from zoo.accounting import account
from zoo.builder import build
from zoo.mixers import mixers
from zoo.recipe import load_recipe
from zoo.recipe.study import Budget, Study
from zoo.study import run_study
from zoo.study.memory import training_bytes
from zoo.study.plan import plan_study, print_plan
from zoo.study.resolve import resolve_study

from .fakes import FakeTraining


def test_a_plan_says_what_every_variant_takes(study: Study) -> None:
    several = study.replace(seeds=2, learning_rates=(1e-3, 2e-3))
    planned = plan_study(several, tokens_per_second=256.0)
    assert [each.name for each in planned] == list(study.variants)
    linear = planned[1]
    costs = account(resolve_study(several)[0].variants[1].recipe, (64,))
    assert (linear.state_bytes, linear.runs, linear.steps, linear.tokens) == (costs.state_bytes[64], 4, 3, 768)
    assert linear.flops_per_token == costs.training_flops_per_token[64]
    assert linear.seconds == 4 * 768 / 256
    assert linear.memory > 16 * linear.parameters


@pytest.mark.usefixtures("undrawn")
def test_finished_runs_tell_the_speed(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    run_study(study, tmp_path, progress=False)
    assert {each.seconds for each in plan_study(study, tmp_path, tokens_per_second=1.0)} == {768 / 2560}
    assert {each.seconds for each in plan_study(study)} == {None}


def test_a_budget_of_seconds_tells_the_time_and_not_the_steps(study: Study) -> None:
    planned = plan_study(study.replace(budget=Budget(seconds=7.0), seeds=3))
    assert {(each.steps, each.tokens, each.seconds) for each in planned} == {(None, None, 21.0)}


def test_it_is_printed_whole_in_eighty_columns(study: Study) -> None:
    console = Console(file=StringIO(), width=80, color_system=None)
    print_plan(study, plan_study(study.replace(seeds=3), tokens_per_second=100.0), console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "12 runs, training time 92.2 s in one process" in text


@pytest.mark.parametrize("mixer", mixers)
def test_the_memory_of_every_mixer_is_estimated_and_grows_with_the_batch(mixer: str) -> None:
    recipe = load_recipe("tiny", [f"mixer={mixer}", "model.layers=1"])
    once = training_bytes(recipe)
    twice = training_bytes(recipe.override(["training.batch_size=8"]))
    weights = 16 * build(recipe, device="meta").num_parameters()
    assert twice - weights == pytest.approx(2 * (once - weights), rel=0.05)
