"""The study of code at 65,536 tokens: its variants at tiny sizes from text to page, and at full size unbuilt."""

import shutil
from pathlib import Path

import pytest

from zoo.accounting import account
from zoo.builder import shrink
from zoo.recipe import load_recipe
from zoo.recipe.study import Budget, Study, load_study
from zoo.study import run_study
from zoo.study.export import export_study
from zoo.study.options import differing_options
from zoo.study.report import report_study
from zoo.study.resolve import resolve_study


@pytest.fixture
def small(tmp_path: Path) -> Study:
    """The study with budgets of 2 and 4 steps of 128 tokens, in documents that are longer than a sequence."""
    (tmp_path / "code").mkdir()
    for number in range(40):
        lines = (f"def function_{number}_{line}(x): return x * {line**3}\n" for line in range(30))
        (tmp_path / "code" / f"{number}.py").write_text("".join(lines))
    recipe = shrink(load_recipe("rwkv7-124m"))
    (tmp_path / "small.yaml").write_text(recipe.to_yaml())
    overrides = (
        f"data.source={tmp_path / 'code'}", "model.layers=1", "training.compile=false", "training.accumulate=1",
        "training.batch_size=1", "training.context_length=128", "training.evaluation_tokens=512",
    )  # fmt: skip
    study = load_study("code-64k").replace(recipe=str(tmp_path / "small.yaml"), overrides=overrides, seeds=1)
    return study.replace(budgets=(Budget(tokens=256), Budget(tokens=512)))


@pytest.mark.usefixtures("undrawn")
def test_it_goes_from_text_to_page_in_pieces_without_weights(small: Study, tmp_path: Path) -> None:
    run_study(small, tmp_path / "first", progress=False, only=["tokens-256/*"])
    export_study([tmp_path / "first"], tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", tmp_path / "second")
    found = run_study(small, tmp_path / "second", progress=False)
    exported = export_study([tmp_path / "second"], tmp_path / "kept")
    assert (exported.runs, exported.planned) == (14, 14)
    assert exported.byte_count < 14 * 2**16
    for place in ("first", "second", "code"):
        shutil.rmtree(tmp_path / place)
    reported = report_study([tmp_path / "kept"], tmp_path / "kept")
    assert [each.replace(date="") for each in reported] == [each.replace(date="") for each in found]
    for summary in reported:
        assert [variant.name for variant in summary.variants] == list(small.variants)
        for variant in summary.variants:
            (run,) = variant.runs
            assert run.positions[-1].end == 128
            assert run.validation.tokens[-1] == int(summary.folder.removeprefix("tokens-"))
    rows = (tmp_path / "kept" / "by-budget.md").read_text().splitlines()
    assert len(rows) == 2 + 14
    assert "Every variant with every budget" in (tmp_path / "kept" / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["code-64k", "code-64k-rates"])
def test_all_variants_are_built_at_full_size_and_are_equal(name: str) -> None:
    for part in resolve_study(load_study(name)):
        sizes = [account(variant.recipe, ()).parameters.total for variant in part.variants]
        assert sizes[0] == 124_250_112
        assert all(abs(size / sizes[0] - 1) < 0.01 for size in sizes)
        differing = {option.key for option in differing_options(part.variants)}
        assert differing <= {
            "model.feed_forward_width", "mixer.p", "mixer.query_key_norm", "mixer.rotary", "mixer.rotary_base",
            "mixer.expand", "training.learning_rate",
        }  # fmt: skip
