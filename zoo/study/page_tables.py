"""The tables of a study's page."""

from collections.abc import Iterable
from html import escape

from zoo.report.numbers import count, difference, duration
from zoo.study.columns import Column, columns
from zoo.study.results import VariantSummary
from zoo.study.summary import StudySummary

__all__ = ["differences_table", "options_table", "results_table", "runs_table", "variants_table"]


def results_table(summary: StudySummary) -> str:
    """Every number of every variant; the script sorts its rows, and those of minor columns are hidden at first."""
    chosen = columns(summary)
    head = "".join(
        f'<th scope="col"{_class(each.kind)} title="{escape(each.explanation)}">{escape(each.heading)}</th>'
        for each in chosen
    )
    rows = [_result_row(variant, chosen, summary) for variant in summary.variants]
    baseline = "".join(f"<td{_class(each.kind)}>{each.baseline}</td>" for each in chosen)
    bigram = (
        f'<tr class="baseline"><th scope="row"><span class="swatch"></span>bigram model</th>{baseline}</tr>'
        if summary.bigram_bits is not None
        else ""
    )
    return (
        f'<table class="numbers sortable"><thead><tr><th scope="col">variant</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}{bigram}</tbody></table>"
    )


def _result_row(variant: VariantSummary, chosen: Iterable[Column], summary: StudySummary) -> str:
    cells = ""
    for column in chosen:
        best = " best" if column.is_best(variant, summary.variants) else ""
        value = column.sorted_by(variant)
        key = "" if value is None else f' data-value="{value!r}"'
        cells += f"<td{_class((column.kind + best).strip())}{key}>{escape(column.text(variant))}</td>"
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


def options_table(summary: StudySummary) -> str:
    """What differs between variants besides the mixer; that nothing does is said."""
    if not summary.options:
        return (
            "<section><h2>What differs besides the mixer</h2><p>Nothing: every other setting is the same.</p></section>"
        )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in summary.planned)
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(each.key)}</code></th>'
        + "".join(f"<td>{escape(each.values.get(name, ''))}</td>" for name in summary.planned)
        + "</tr>"
        for each in summary.options
    )
    return (
        "<section><h2>What differs besides the mixer</h2>"
        '<div class="card scroll" tabindex="0" role="region" aria-label="Settings that differ"><table class="numbers">'
        f'<thead><tr><th scope="col">setting</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def runs_table(summary: StudySummary) -> str:
    """Each run with its loss, its speed and its environment."""
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("variant", "rate", "seed", f"final {escape(summary.unit)}", "tokens/s", "training time")
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(variant.name)}</th><td>{run.learning_rate:g}</td><td>{run.seed}</td>'
        f"<td>{run.final_bits:.3f}</td>"
        f'<td data-value="{run.tokens_per_second!r}">{count(run.tokens_per_second)}</td>'
        f'<td data-value="{run.seconds!r}">{duration(run.seconds)}</td>'
        f'<td class="words">{escape(str(run.machine))}</td></tr>'
        for variant in summary.variants
        for run in variant.runs
    )
    return (
        f'<table class="numbers sortable"><thead><tr>{head}<th scope="col" class="words">environment</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
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
