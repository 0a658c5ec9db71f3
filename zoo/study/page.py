"""The page of a study: one HTML file with its plots and tables, which loads nothing and runs no script, by policy."""

import base64
import hashlib
from collections.abc import Mapping
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template

from zoo.report.numbers import size, with_interval
from zoo.report.plots import DARK, LIGHT
from zoo.study.page_tables import differences_table, results_table, variants_table
from zoo.study.plots import Plot, color_of, plots_of, render
from zoo.study.summary import StudySummary

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
        plots="\n".join(_plot(plot, summary) for plot in plots_of(summary)),
        results=results_table(summary),
        differences=differences_table(summary),
        notes=_notes(summary),
        variants=variants_table(summary),
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
    """Say in words which variant ends lowest, where the others and the bigram model are, and what may be chance."""
    ranked = sorted(summary.variants, key=lambda variant: variant.final_bits)
    best = ranked[0].final_bits
    places = [f"<b>{escape(ranked[0].name)}</b>, {with_interval(best, ranked[0].interval)} {escape(summary.unit)}"]
    places += [f"{escape(each.name)} {each.final_bits - best:+.3f}" for each in ranked[1:]]
    above = [escape(variant.name) for variant in ranked if variant.final_bits >= summary.bigram_bits]
    baseline = f"a bigram model of the same text ({summary.bigram_bits:.3f})"
    return (
        f"Lowest validation loss at the end{_how_sure(summary)}: {', '.join(places)}. "
        + _not_clear(summary, ranked[0].name)
        + (f"Not below {baseline}: {', '.join(above)}." if above else f"All are below {baseline}.")
    )


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
        names = escape(", ".join(summary.unfinished))
        lines.append(f"Not finished yet: {names}. The same command continues the study.")
    return "".join(f'<p class="warning">{line}</p>' for line in lines)


def _facts(summary: StudySummary) -> str:
    facts = [
        ("recipe", summary.recipe),
        ("steps", f"{summary.steps:,}"),
        ("tokens a step", f"{summary.batch_tokens:,}"),
        ("context", f"{summary.context_length:,}"),
        ("seed" if len(summary.seeds) == 1 else "seeds", ", ".join(map(str, summary.seeds))),
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
        **_seed_note(summary),
        "Seconds": "depend on the machine; tokens, operations and losses do not, up to rounding.",
    }
    return "".join(f"<li><b>{escape(head)}</b> {escape(text)}</li>" for head, text in notes.items())


def _seed_note(summary: StudySummary) -> dict[str, str]:
    if len(summary.seeds) == 1:
        note = (
            f"({summary.seeds[0]}), and the same batches in the same order for all. Another seed moves every loss a "
            "little, so read small differences with care."
        )
        return {"One seed": note}
    return {
        f"{len(summary.seeds)} seeds": (
            "of weights and of the order of batches, the same ones for all. Bands reach from the lowest to the highest "
            "loss. Two variants are not distinguishable where a paired t-test over the seeds, corrected for the number "
            "of pairs, gives a probability of 5% or more."
        )
    }


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
        for machine in dict.fromkeys(str(run.machine) for run in variant.runs):
            names.setdefault(machine, []).append(variant.name)
    lines = list(names) if len(names) == 1 else [f"{', '.join(of)}: {machine}" for machine, of in names.items()]
    return "<br>".join(map(escape, lines))
