from collections.abc import Callable
from io import StringIO
from pathlib import Path

from rich.console import Console

from zoo.study.columns import columns
from zoo.study.results import VariantSummary
from zoo.study.summary import StudySummary
from zoo.study.table import print_summary, text_rows


def printed(summary: StudySummary, width: int = 100) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    print_summary(summary, Path("runs/a-study/index.html"), console)
    return console.file.getvalue()


def test_the_table_fits_a_hundred_characters(summary: StudySummary) -> None:
    text = printed(summary)
    assert max(map(len, text.splitlines())) <= 100
    for variant in summary.variants:
        row = next(line for line in text.splitlines() if line.startswith(f"{variant.name} "))
        assert f"{variant.final_bits:.3f}" in row
    assert ["bigram", "model", "3.583", "3.583"] in [line.split() for line in text.splitlines()]
    assert "…" not in text


def test_names_and_numbers_stay_whole_in_eighty_characters(
    make_summary: Callable[..., StudySummary], make_variant: Callable
) -> None:
    summary = make_summary(
        make_variant("softmax", 2.214, state=None),
        make_variant("sliding-window", 2.391, parameters=1_204_102),
        make_variant("gated-power", 2.197, parameters=1_205_511),
    )
    text = printed(summary, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert {"sliding-window", "gated-power", "2.197", "1.21M", "(+0.17%)", "128"} <= set(text.split())
    assert {"MiB", "parameters", "tokens/s", "training", "60.0", "s"} <= set(text.split())


def test_the_last_line_says_where_the_page_is(summary: StudySummary) -> None:
    assert printed(summary, width=30).splitlines()[-1] == "Page: runs/a-study/index.html"


def test_unfinished_variants_are_named(make_summary: Callable[..., StudySummary], make_variant: Callable) -> None:
    assert "b is not finished" in printed(make_summary(make_variant("a"), planned=("a", "b")))


def test_names_are_no_markup(make_summary: Callable[..., StudySummary], make_variant: Callable) -> None:
    assert "[red]x[/red]" in printed(make_summary(make_variant("[red]x[/red]"), name="[bold]"))


def test_the_best_of_a_column_is_the_lowest_and_none_where_all_are_equal(summary: StudySummary) -> None:
    best = {
        column.heading: [variant.name for variant in summary.variants if column.is_best(variant, summary.variants)]
        for column in columns(summary)
    }
    assert best["final bits per byte"] == ["gated-power"]
    assert best["tokens/s"] == best["state at 65,536"] == ["linear"]
    assert best["tokens"] == best["parameters"] == best["graph breaks"] == []


def test_equal_numbers_share_the_emphasis(make_summary: Callable[..., StudySummary], make_variant: Callable) -> None:
    summary = make_summary(make_variant("a", 2.0001), make_variant("b", 2.0004), make_variant("c", 3.0))
    final = next(column for column in columns(summary) if column.heading.startswith("final"))
    assert [final.is_best(variant, summary.variants) for variant in summary.variants] == [True, True, False]


def test_every_column_is_in_the_files_tables(summary: StudySummary) -> None:
    headings, rows = text_rows(summary)
    assert headings == ["variant", *(column.heading for column in columns(summary))]
    assert [row[0] for row in rows] == [*summary.planned, "bigram model"]
    assert {len(row) for row in rows} == {len(headings)}
    assert rows[1][headings.index("parameters")] == "1.20M (+0.05%)"
    assert rows[-1][2:5] == ["3.583", "3.583", ""]
    assert [rows[0][headings.index(name)] for name in ("learning rate", "seeds")] == ["0.004", "1"]


def test_over_seeds_a_loss_has_its_interval_and_the_best_are_those_that_chance_may_have_ordered(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    def variant(name: str, *losses: float) -> VariantSummary:
        return make_variant(name, runs=tuple(make_run(loss, seed=seed) for seed, loss in enumerate(losses)))

    summary = make_summary(
        variant("a", 2.0, 2.1, 2.2), variant("b", 2.3, 1.9, 2.3), variant("c", 3.0, 3.11, 3.2), variant("d", 3, 3, 3.3)
    )
    final = columns(summary)[1]
    assert [final.text(each) for each in summary.variants[:2]] == ["2.100 ± 0.248", "2.167 ± 0.574"]
    assert [final.is_best(each, summary.variants) for each in summary.variants] == [True, True, False, False]
    text = printed(summary, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
