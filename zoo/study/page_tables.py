"""The tables of a study's page."""

from collections.abc import Iterable
from html import escape

from zoo.report.numbers import difference
from zoo.study.results import VariantSummary
from zoo.study.summary import StudySummary
from zoo.study.table import Column, columns

__all__ = ["differences_table", "results_table", "variants_table"]


def results_table(summary: StudySummary) -> str:
    """Every number of every variant."""
    chosen = columns(summary)
    head = "".join(
        f'<th scope="col"{_class(each.kind)} title="{escape(each.explanation)}">{escape(each.heading)}</th>'
        for each in chosen
    )
    rows = [_result_row(variant, chosen, summary) for variant in summary.variants]
    baseline = "".join(f"<td>{each.baseline}</td>" for each in chosen)
    return (
        f'<table class="numbers"><thead><tr><th scope="col">variant</th>{head}</tr></thead><tbody>{"".join(rows)}'
        '<tr class="baseline"><th scope="row"><span class="swatch"></span>bigram model</th>'
        f"{baseline}</tr></tbody></table>"
    )


def _result_row(variant: VariantSummary, chosen: Iterable[Column], summary: StudySummary) -> str:
    cells = ""
    for column in chosen:
        kind = "best" if column.is_best(variant, summary.variants) else column.kind
        cells += f"<td{_class(kind)}>{escape(column.text(variant))}</td>"
    return f'<tr><th scope="row">{_swatch(variant, summary)}{escape(variant.name)}</th>{cells}</tr>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _swatch(variant: VariantSummary, summary: StudySummary) -> str:
    return f'<span class="swatch of-{summary.variants.index(variant)}"></span>'


def differences_table(summary: StudySummary) -> str:
    """Each pair of variants with its heading; nothing for one seed."""
    differences = summary.differences
    if not differences:
        return ""
    rows = (
        f'<tr><th scope="row">{escape(each.second)} − {escape(each.first)}</th>'  # noqa: RUF001
        f"<td>{each.mean:+.3f} ± {each.interval:.3f}</td><td>{each.p:.2g}</td>"
        f"<td>{'yes' if each.is_clear else 'no'}</td></tr>"
        for each in differences
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("pair", "difference", "p", "distinguishable"))
    return (
        '<h2>Differences over seeds</h2>\n<div class="card scroll" tabindex="0" role="region" '
        'aria-label="Differences of every pair of variants"><table class="numbers">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def variants_table(summary: StudySummary) -> str:
    """What sets each variant apart, and its size."""
    rows = (
        f'<tr><th scope="row">{_swatch(variant, summary)}{escape(variant.name)}</th>'
        f'<td class="settings">{_settings(variant)}</td>'
        f"<td>{variant.parameters:,}{_difference(variant, summary)}</td><td>{variant.feed_forward_width:,}</td></tr>"
        for variant in summary.variants
    )
    head = (
        '<th scope="col">variant</th><th scope="col" class="settings">settings</th>'
        '<th scope="col">parameters</th><th scope="col">feed-forward</th>'
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _settings(variant: VariantSummary) -> str:
    return "<br>".join(f"<code>{escape(override)}</code>" for override in variant.overrides) or "as the recipe says"


def _difference(variant: VariantSummary, summary: StudySummary) -> str:
    if variant.name == summary.variants[0].name:
        return ""
    text = difference(variant.parameters, summary.variants[0].parameters)
    return f' <span class="difference">{text}</span>'
