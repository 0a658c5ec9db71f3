"""The page of a study: one HTML file with its plots and tables, which loads nothing and runs no script, by policy."""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template

from zoo.report.numbers import difference, size
from zoo.report.plots import DARK, LIGHT
from zoo.study.plots import PLOTS, Plot, color_of, render
from zoo.study.summary import StudySummary, VariantSummary
from zoo.study.table import Column, columns

__all__ = ["render_page"]


def render_page(summary: StudySummary) -> str:
    """Return the page of a study with at least one finished variant."""
    template = Template(files("zoo.study").joinpath("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        policy="$policy",
        swatches=_swatches(summary),
        title=escape(summary.name),
        description=f'<p class="description">{escape(summary.description)}</p>' if summary.description else "",
        finding=f'<p class="finding">{_finding(summary)}</p>',
        warning=_warning(summary),
        facts=_facts(summary),
        plots="\n".join(_plot(plot, summary) for plot in PLOTS),
        results=_results(summary),
        notes=_notes(summary),
        variants=_variants(summary),
        corpus=_corpus(summary),
        command=escape(summary.command),
        study=escape(summary.study_yaml),
        footer=_footer(summary),
    )
    return page.replace("$policy", _policy(page), 1)


def _policy(page: str) -> str:
    """Return a Content-Security-Policy under which a page has its own style and pictures inside, and nothing else.

    Whatever found its way into the text would neither run nor load anything.
    """
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _finding(summary: StudySummary) -> str:
    """Say in words which variant ends lowest and where the others and the bigram model are."""
    ranked = sorted(summary.variants, key=lambda variant: variant.final_bits)
    best = ranked[0].final_bits
    places = [f"<b>{escape(ranked[0].name)}</b>, {best:.3f} {escape(summary.unit)}"]
    places += [f"{escape(each.name)} {each.final_bits - best:+.3f}" for each in ranked[1:]]
    above = [escape(variant.name) for variant in ranked if variant.final_bits >= summary.bigram_bits]
    baseline = f"a bigram model of the same text ({summary.bigram_bits:.3f})"
    return f"Lowest validation loss at the end: {', '.join(places)}. " + (
        f"Not below {baseline}: {', '.join(above)}." if above else f"All are below {baseline}."
    )


def _warning(summary: StudySummary) -> str:
    if not summary.unfinished:
        return ""
    names = escape(", ".join(summary.unfinished))
    return f'<p class="warning">Not finished yet: {names}. The same command continues the study.</p>'


def _facts(summary: StudySummary) -> str:
    facts = [
        ("recipe", summary.recipe),
        ("steps", f"{summary.steps:,}"),
        ("tokens a step", f"{summary.batch_tokens:,}"),
        ("context", f"{summary.context_length:,}"),
        ("seed", str(summary.seed)),
        ("written", f"{datetime.fromisoformat(summary.date):%d %B %Y, %H:%M} UTC"),
    ]
    return "".join(f"<li>{escape(name)} <b>{escape(value)}</b></li>" for name, value in facts)


def _plot(plot: Plot, summary: StudySummary) -> str:
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


def _results(summary: StudySummary) -> str:
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


def _swatches(summary: StudySummary) -> str:
    """The variants' colours, in the page's one style: the policy knows no styles of elements."""
    return "".join(
        f".of-{index} {{ --light: {color_of(variant, summary, LIGHT)}; --dark: {color_of(variant, summary, DARK)}; }}\n"
        for index, variant in enumerate(summary.variants)
    )


def _notes(summary: StudySummary) -> str:
    loss = "is what the model needs to write down one token of unseen text: lower is better."
    if summary.unit == "bits per byte":
        loss = (
            "is what the model needs to write down one byte of unseen text, 8 bits being what it needs without knowing "
            "anything: lower is better. It does not depend on the tokenizer."
        )
    notes = {
        f"Loss in {summary.unit}": loss,
        "The bigram model": "predicts each token from the one before, by counts of the training text plus one.",
        "Parameters": (
            "are matched within 1% by the width of the feed-forward layers: a mixer with more weights of its own gets "
            "narrower ones."
        ),
        "One seed": (
            f"({summary.seed}), and the same batches in the same order for all. Another seed moves every loss a "
            "little, so read small differences with care."
        ),
        "Seconds": "depend on the machine; tokens, operations and losses do not, up to rounding.",
    }
    return "".join(f"<li><b>{escape(head)}</b> {escape(text)}</li>" for head, text in notes.items())


def _variants(summary: StudySummary) -> str:
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


def _corpus(summary: StudySummary) -> str:
    corpus = summary.corpus
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
        names.setdefault(str(variant.machine), []).append(variant.name)
    lines = list(names) if len(names) == 1 else [f"{', '.join(of)}: {machine}" for machine, of in names.items()]
    return "<br>".join(map(escape, lines))
