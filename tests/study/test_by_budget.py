"""Several budgets: the same runs with a schedule for each, a page a budget, and one above that has all of them."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from matplotlib.image import imread

from zoo.errors import ConfigError
from zoo.recipe.study import Budget, Study
from zoo.report.plots import LIGHT
from zoo.study import run_study
from zoo.study.by_budget import budget_plots, outcomes, text_rows_by_budget
from zoo.study.overview import render_overview
from zoo.study.page import render_page
from zoo.study.plan import plan_study
from zoo.study.plots import render
from zoo.study.report import report_study
from zoo.study.resolve import resolve_study
from zoo.study.results import PositionLoss
from zoo.study.summary import StudySummary
from zoo.study.variants import only_runs, variant_by_variant

from .fakes import FakeTraining
from .test_page import Outline


@pytest.fixture
def budgeted(study: Study) -> Study:
    """Two variants with two budgets, which have room for 8 and 20 steps of 128 tokens."""
    small = study.overridden(["training.batch_size=2", "training.accumulate=1", "training.context_length=64"])
    variants = {"a": (), "b": ("mixer=power",)}
    return small.replace(variants=variants, seeds=2, budgets=(Budget(tokens=1024), Budget(tokens=2560)))


def test_each_budget_is_a_part_with_its_own_schedule_and_folder(budgeted: Study) -> None:
    short, long = resolve_study(budgeted)
    assert [(part.folder, part.label) for part in (short, long)] == [
        ("tokens-1024", "1,024 tokens"), ("tokens-2560", "2,560 tokens")
    ]  # fmt: skip
    assert [part.variants[0].steps for part in (short, long)] == [8, 20]
    assert long.variants[1].runs[1].name == "tokens-2560/b/rate-0.004-seed-1"
    assert short.variants[1].recipe.model == long.variants[1].recipe.model
    (alone,) = resolve_study(budgeted.replace(budgets=(Budget(tokens=1024),)))
    assert (alone.folder, alone.label, alone.variants[0].steps) == ("", "", 8)
    tasks = resolve_study(budgeted.replace(tasks=("text", {"kind": "mqar", "train_lengths": [64], "pairs": 4})))
    assert [part.folder for part in tasks][1:3] == ["text/tokens-2560", "mqar train_lengths=64 pairs=4/tokens-1024"]


def test_every_fault_is_told_once_and_a_budget_that_is_too_small_by_its_own(budgeted: Study) -> None:
    with pytest.raises(ConfigError, match=r"^variant 'b': overrides: training.setps: unknown key"):
        resolve_study(budgeted.replace(variants={"a": (), "b": ("training.setps=3",)}))
    with pytest.raises(ConfigError, match=r"^variant 'a': budget.tokens: must have room for a step, .* got 5$"):
        resolve_study(budgeted.replace(variants={"a": ()}, budgets=(Budget(tokens=1024), Budget(tokens=5))))
    with pytest.raises(ConfigError, match=r"training.steps: must be left to the study's budget"):
        resolve_study(budgeted.overridden(["training.steps=9"]))


def test_a_plan_has_each_budget(budgeted: Study) -> None:
    planned = plan_study(budgeted, None, 1000.0)
    assert [(each.task, each.name, each.tokens) for each in planned] == [
        ("1,024 tokens", "a", 1024), ("1,024 tokens", "b", 1024),
        ("2,560 tokens", "a", 2560), ("2,560 tokens", "b", 2560),
    ]  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_a_variant_is_trained_with_all_its_budgets_before_the_next(
    budgeted: Study, training: FakeTraining, tmp_path: Path
) -> None:
    order = [(part.folder, variant.name) for part, variant in variant_by_variant(resolve_study(budgeted))]
    assert order == [("tokens-1024", "a"), ("tokens-2560", "a"), ("tokens-1024", "b"), ("tokens-2560", "b")]
    short, long = run_study(budgeted, tmp_path, progress=False)
    assert (short.steps, long.steps) == (8, 20)
    assert (short.title, long.folder) == (f"{budgeted.name}: 1,024 tokens", "tokens-2560")
    assert short.corpus == long.corpus
    for folder in ("tokens-1024", "tokens-2560"):
        assert {path.name for path in (tmp_path / folder).iterdir()} >= {"index.html", "summary.csv", "setting.json"}
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"index.html", "by-budget.csv", "by-budget.md", "loss-by-budget-in-flops.png"}
    lines = (tmp_path / "by-budget.csv").read_text().splitlines()
    assert lines[0].startswith("variant,budget,learning_rate,seed,bits_per_byte,flops,seconds,tokens,")
    assert len(lines) == 1 + 2 * 2 * 2
    again = report_study([tmp_path], tmp_path / "again")
    assert [each.replace(date="") for each in again] == [each.replace(date="") for each in (short, long)]
    assert (tmp_path / "again" / "by-budget.csv").read_text() == (tmp_path / "by-budget.csv").read_text()


@pytest.mark.usefixtures("undrawn")
def test_some_runs_may_be_trained_alone(budgeted: Study, training: FakeTraining, tmp_path: Path) -> None:
    first, _ = run_study(budgeted, tmp_path, progress=False, only=["tokens-1024/*-seed-0", "*/b/*seed-0"])
    assert training.trained == ["rate-0.004-seed-0"] * 3
    assert first.waiting == {"a": 1, "b": 1}
    parts = only_runs(resolve_study(budgeted), ["tokens-2560/a/*"])
    assert [[variant.name for variant in part.variants] for part in parts] == [[], ["a"]]
    with pytest.raises(
        ConfigError, match=r"^only: no run is like 'seed-3'; there are tokens-1024/a/rate-0.004-seed-0, "
    ):
        run_study(budgeted, tmp_path, progress=False, only=["*", "seed-3"])
    run_study(budgeted, tmp_path, progress=False)
    assert len(training.trained) == 8


@pytest.fixture
def summaries(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> list[StudySummary]:
    """Two budgets, of which the second is not finished of all."""

    def runs(loss: float) -> tuple:
        positions = (PositionLoss(start=0, end=1, loss=4.0, tokens=8), PositionLoss(start=1, end=2, loss=2.0, tokens=8))
        return tuple(make_run(loss + seed / 100, seed=seed).replace(positions=positions) for seed in (0, 1))

    names = ("softmax", "power", "kda")
    short = make_summary(
        *(make_variant(name, runs=runs(2.5 + place / 10)) for place, name in enumerate(names)), planned=names,
        budget="120 s of training", label="120 s of training", folder="seconds-120", name="by-time",
    )  # fmt: skip
    long = make_summary(
        *(make_variant(name, runs=runs(2.2 - place / 10)) for place, name in enumerate(names[:2])), planned=names,
        budget="240 s of training", label="240 s of training", folder="seconds-240", name="by-time",
        waiting={"kda": 2},
    )  # fmt: skip
    return [short, long]


def test_the_page_above_has_final_losses_by_what_they_took_and_positions(summaries: list[StudySummary]) -> None:
    study = Study(
        name="by-time", recipe="tiny", variants={"softmax": (), "power": (), "kda": ()},
        budgets=(Budget(seconds=120), Budget(seconds=240)),
    )  # fmt: skip
    outline = Outline(render_overview(study, summaries, ["seconds-120", "seconds-240"]))
    assert outline.rows[1][0] == "softmax"
    assert outline.rows[3][2] == "-"
    pictures = [attributes["alt"] for tag, attributes in outline.tags if tag == "img"]
    assert [each.partition(",")[0] for each in pictures] == [
        "Final loss by computation", "Final loss by time", "Final loss by tokens", "Loss by position"
    ]  # fmt: skip
    assert "240 s of training: not finished yet: kda." in outline.text
    headings, rows = text_rows_by_budget(summaries)
    assert [row[:2] for row in rows] == [
        ["softmax", "120 s of training"], ["softmax", "240 s of training"],
        ["power", "120 s of training"], ["power", "240 s of training"], ["kda", "120 s of training"],
    ]  # fmt: skip
    assert rows[0][headings.index("seeds")] == "2"
    assert "by-time: 240 s of training" in render_page(summaries[1])


@pytest.mark.parametrize("index", range(3))
def test_final_losses_are_drawn(summaries: list[StudySummary], index: int) -> None:
    plot = budget_plots(summaries)[index]
    image = imread(BytesIO(render(plot, summaries[1], LIGHT, "png")), format="png")
    assert image.shape == (780, 1120, 4)
    found = outcomes(summaries)
    assert found[0].spent("tokens") == 300 * 4096
    assert found[0].losses == (2.5, 2.51)
