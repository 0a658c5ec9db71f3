"""The page that leads to the pages of a study's parts: its tasks, and the budgets that each was trained with."""

from collections.abc import Sequence
from html import escape
from itertools import groupby
from statistics import fmean
from urllib.parse import quote

from zoo.recipe.study import Study
from zoo.report.numbers import with_interval
from zoo.study.by_budget import budget_plots, text_rows_by_budget
from zoo.study.page import fill_page, finding, plot_figure
from zoo.study.plots import plots_of
from zoo.study.summary import StudySummary

__all__ = ["render_overview"]


def render_overview(study: Study, summaries: Sequence[StudySummary], folders: Sequence[str]) -> str:
    """Return a page with a row for each variant and a column for each part, whose page it links to.

    Of a task with several budgets it also shows final losses by what they took, and the positions of the last budget.

    Args:
        study: which.
        summaries: what each part came to so far.
        folders: of the parts, beside the page.
    """
    heads = "".join(
        f'<th scope="col"><a href="{quote(folder)}/index.html">{escape(_label(summary))}</a><br>'
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
        f"{escape(_label(summary))}: not finished yet: {escape(', '.join(summary.unfinished))}."
        for summary in summaries
        if summary.unfinished
    ]
    by_task = [list(same) for _, same in groupby(summaries, key=lambda summary: summary.task)]
    body = (
        f"<header><h1>{escape(study.name)}</h1>"
        + (f'<p class="description">{escape(study.description)}</p>' if study.description else "")
        + "".join(f'<p class="warning">{line}</p>' for line in left)
        + f"</header><section><h2>{'Budgets' if study.budgets else 'Tasks'}</h2>"
        '<div class="card scroll" tabindex="0" role="region" aria-label="Results of every part"><table class="numbers">'
        f'<thead><tr><th scope="col">variant</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>'
        + "".join(map(_budgets, by_task))
    )
    return fill_page(study.name, "", body)


def _label(summary: StudySummary) -> str:
    return summary.label or summary.task


def _budgets(summaries: Sequence[StudySummary]) -> str:
    """Plots, sentences and numbers of one task by budget; nothing where it has one, or nothing is finished."""
    there = [summary for summary in summaries if summary.variants]
    if len(summaries) < 2 or not there:
        return ""
    last = there[-1]
    positions = [plot for plot in plots_of(last) if plot.name == "loss-by-position"]
    figures = "\n".join(plot_figure(plot, last) for plot in (*budget_plots(summaries), *positions))
    said = "".join(f"<li><b>{escape(_label(summary))}</b> {finding(summary)}</li>" for summary in there)
    headings, rows = text_rows_by_budget(summaries)
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return (
        f'<section class="plots" aria-label="Plots by budget">{figures}</section>'
        f'<section><h2>What follows</h2><ul class="notes">{said}</ul></section>'
        '<section><h2>Every budget</h2><div class="card scroll" tabindex="0" role="region" '
        f'aria-label="Every variant with every budget"><table class="numbers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


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
