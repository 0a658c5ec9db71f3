"""The page that leads to the pages of a study's tasks."""

from collections.abc import Sequence
from html import escape
from statistics import fmean
from urllib.parse import quote

from zoo.recipe.study import Study
from zoo.report.numbers import with_interval
from zoo.study.page import fill_page
from zoo.study.summary import StudySummary

__all__ = ["render_overview"]


def render_overview(study: Study, summaries: Sequence[StudySummary], folders: Sequence[str]) -> str:
    """Return a page with a row for each variant and a column for each task, whose page it links to.

    Args:
        study: which.
        summaries: what each task came to so far.
        folders: of the tasks, beside the page.
    """
    heads = "".join(
        f'<th scope="col"><a href="{quote(folder)}/index.html">{escape(summary.task)}</a><br>'
        f'<span class="difference">{_measure(summary)}</span></th>'
        for summary, folder in zip(summaries, folders, strict=True)
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{_cell(summary, name)}</td>" for summary in summaries)
        + "</tr>"
        for name in study.variants
    )
    left = [
        f"{escape(summary.task)}: not finished yet: {escape(', '.join(summary.unfinished))}."
        for summary in summaries
        if summary.unfinished
    ]
    body = (
        f"<header><h1>{escape(study.name)}</h1>"
        + (f'<p class="description">{escape(study.description)}</p>' if study.description else "")
        + "".join(f'<p class="warning">{line}</p>' for line in left)
        + "</header><section><h2>Tasks</h2>"
        '<div class="card scroll" tabindex="0" role="region" aria-label="Results of every task"><table class="numbers">'
        f'<thead><tr><th scope="col">variant</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )
    return fill_page(study.name, "", body)


def _measure(summary: StudySummary) -> str:
    return "accuracy" if _is_asked(summary) else escape(summary.unit)


def _is_asked(summary: StudySummary) -> bool:
    return any(variant.accuracies for variant in summary.variants)


def _cell(summary: StudySummary, name: str) -> str:
    variant = next((each for each in summary.variants if each.name == name), None)
    if variant is None:
        return "diverged" if name in summary.diverged else "-"
    if _is_asked(summary):
        return f"{fmean(variant.accuracies.values()):.1%}" if variant.accuracies else "-"
    return with_interval(variant.final_bits, variant.interval)
