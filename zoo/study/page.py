"""The page of a study: one HTML file with its plots and tables, which loads nothing and runs one script, by policy."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from statistics import fmean
from string import Template

from zoo.report.numbers import size, with_interval
from zoo.report.plots import DARK, LIGHT
from zoo.study.colors import color_of
from zoo.study.page_notes import notes
from zoo.study.page_tables import differences_table, options_table, results_table, runs_table, variants_table
from zoo.study.plots import Plot, plots_of, render
from zoo.study.results import VariantSummary
from zoo.study.summary import StudySummary

__all__ = ["fill_page", "finding", "plot_figure", "render_page"]


def render_page(summary: StudySummary) -> str:
    """Return the page of a study on one task, with at least one finished run."""
    body = Template(_file("body.html")).substitute(
        title=escape(summary.title),
        description=f'<p class="description">{escape(summary.description)}</p>' if summary.description else "",
        finding=f'<p class="finding">{finding(summary)}</p>',
        warning=_warning(summary),
        facts=_facts(summary),
        plots="\n".join(plot_figure(plot, summary) for plot in plots_of(summary)),
        results=results_table(summary),
        differences=differences_table(summary),
        options=options_table(summary),
        notes=notes(summary),
        variants=variants_table(summary),
        corpus=_corpus(summary),
        runs=runs_table(summary),
        command=escape(summary.command),
        study=escape(summary.study_yaml),
        footer=_footer(summary),
    )
    return fill_page(summary.title, _swatches(summary), body)


def fill_page(title: str, style: str, body: str) -> str:
    """Return a whole page with this body, further lines of style, and the one script that sorts tables."""
    page = Template(_file("page.html")).substitute(
        policy="$policy", title=escape(title), swatches=style, body=body, script=_file("sort.js")
    )
    return page.replace("$policy", _policy(page), 1)


def _file(name: str) -> str:
    return files("zoo.study").joinpath(name).read_text(encoding="utf-8")


def _policy(page: str) -> str:
    """Return a Content-Security-Policy under which a page has its own style, script and pictures, and nothing else.

    Whatever found its way into the text would neither run nor load anything.
    """
    style, script = (page.partition(f"<{tag}>")[2].rpartition(f"</{tag}>")[0] for tag in ("style", "script"))
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def finding(summary: StudySummary) -> str:
    """Say in words which variant ends lowest, where the others and the bigram model are, and what may be chance."""
    ranked = sorted(summary.variants, key=lambda variant: variant.final_bits)
    best = ranked[0].final_bits
    places = [f"<b>{escape(ranked[0].name)}</b>, {with_interval(best, ranked[0].interval)} {escape(summary.unit)}"]
    places += [f"{escape(each.name)} {each.final_bits - best:+.3f}" for each in ranked[1:]]
    return (
        f"Lowest validation loss at the end{_how_sure(summary)}: {', '.join(places)}. "
        + _not_clear(summary, ranked[0].name)
        + _recalled(summary)
        + _below_bigram(summary, ranked)
    )


def _recalled(summary: StudySummary) -> str:
    """Rank the variants by the share of answers that they have right."""
    shares = {each.name: fmean(each.accuracies.values()) for each in summary.variants if each.accuracies}
    ranked = sorted(shares, key=lambda name: -shares[name])
    return f"Right answers: {', '.join(f'{escape(name)} {shares[name]:.1%}' for name in ranked)}. " if ranked else ""


def _below_bigram(summary: StudySummary, ranked: Sequence[VariantSummary]) -> str:
    bigram = summary.bigram_bits
    if bigram is None:
        return ""
    above = [escape(variant.name) for variant in ranked if variant.final_bits >= bigram]
    baseline = f"a bigram model of the same text ({bigram:.3f})"
    return f"Not below {baseline}: {', '.join(above)}." if above else f"All are below {baseline}."


def _how_sure(summary: StudySummary) -> str:
    if len(summary.seeds) == 1:
        return ", of one seed"
    return f", mean of {len(summary.seeds)} seeds with its 95% interval"


def _not_clear(summary: StudySummary, lowest: str) -> str:
    """Name what may be as low; the table has the other pairs."""
    pairs = [{each.first, each.second} for each in summary.differences if not each.is_clear]
    others = [each.name for each in summary.variants if {each.name, lowest} in pairs]
    return f"Not distinguishable from {escape(lowest)}: {escape(', '.join(others))}. " if others else ""


def _warning(summary: StudySummary) -> str:
    lines = [f"<b>Diverged</b>: {escape(str(each))}: {escape(each.message)}." for each in summary.divergences]
    if summary.unfinished:
        names = escape(", ".join(map(summary.with_waiting, summary.unfinished)))
        lines.append(f"Not finished yet: {names}. The same command continues the study.")
    if summary.stopped:
        rates: dict[str, dict[str, None]] = {}
        for each in summary.stopped:
            rates.setdefault(each.variant, {})[f"{each.learning_rate:g}"] = None
        named = "; ".join(f"{escape(name)} at {', '.join(of)}" for name, of in rates.items())
        lines.append(f"Stopped early, by successive halving of the learning rates: {named}.")
    return "".join(f'<p class="warning">{line}</p>' for line in lines)


def _facts(summary: StudySummary) -> str:
    facts = [
        ("recipe", summary.recipe),
        *([("task", summary.task)] if summary.task != "text" else []),
        ("budget", summary.budget) if summary.budget else ("steps", f"{summary.steps:,}"),
        ("equal", "nothing" if summary.match == "none" else summary.match),
        ("tokens a step", f"{summary.batch_tokens:,}"),
        ("context", f"{summary.context_length:,}"),
        ("seed" if len(summary.seeds) == 1 else "seeds", ", ".join(map(str, summary.seeds))),
        ("written", f"{datetime.fromisoformat(summary.date):%d %B %Y, %H:%M} UTC"),
    ]
    return "".join(f"<li>{escape(name)} <b>{escape(value)}</b></li>" for name, value in facts)


def plot_figure(plot: Plot, summary: StudySummary) -> str:
    """Return a plot as it stands on a page, for light and dark."""
    light, dark = (_data_address(render(plot, summary, theme, "svg")) for theme in (LIGHT, DARK))
    names = ", ".join(variant.name for variant in summary.variants)
    return (
        '<figure class="card"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" width="560" height="390" alt="{escape(f"{plot.title}, for {names}")}">'
        f"</picture><figcaption>{escape(plot.note)}</figcaption></figure>"
    )


def _data_address(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _swatches(summary: StudySummary) -> str:
    """The variants' colours, in the page's one style: the policy knows no styles of elements."""
    lines = ""
    for index, variant in enumerate(summary.variants):
        light, dark = (color_of(variant.name, summary, theme) for theme in (LIGHT, DARK))
        lines += f".of-{index} {{ --light: {light}; --dark: {dark}; }}\n"
    return lines


def _corpus(summary: StudySummary) -> str:
    corpus = summary.corpus
    if corpus is None:
        return _definitions({"task": summary.task, "text": "none: sequences are drawn from the seed"})
    source = "the Python standard library's own source" if corpus.source == "stdlib" else corpus.source
    byte_count = corpus.train_bytes + corpus.validation_bytes
    values = {
        "source": source,
        "size": f"{size(byte_count)} ({byte_count:,} bytes)",
        "documents": "not marked" if corpus.documents is None else f"{corpus.documents:,}",
        "tokenizer": corpus.tokenizer,
        "training": f"{corpus.train_tokens:,} tokens",
        "validation": f"{corpus.validation_tokens:,} tokens, of other documents",
        "sha256": corpus.hash,
    }
    if summary.unit != "bits per byte":
        del values["size"]
    return _definitions(values)


def _definitions(values: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in values.items())}</dl>"


def _footer(summary: StudySummary) -> str:
    """Name what the variants ran on, each kind of machine once."""
    names: dict[str, list[str]] = {}
    for variant in summary.variants:
        for machine in dict.fromkeys(str(run.machine) for run in variant.runs):
            names.setdefault(machine, []).append(variant.name)
    lines = list(names) if len(names) == 1 else [f"{', '.join(of)}: {machine}" for machine, of in names.items()]
    return "<br>".join(map(escape, lines))
